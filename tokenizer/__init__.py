"""Stage one: images <-> grids of codes."""

from transformers import AutoConfig, AutoModel

from tokenizer.configuration import BackboneConfig, VQModelConfig
from tokenizer.images import Preprocessing
from tokenizer.modeling import VQModel, VQModelOutput
from tokenizer.quantizers import VectorQuantizerConfig

# So that `AutoModel.from_pretrained` knows a tokenizer's folder once this package is imported.
AutoConfig.register(VQModelConfig.model_type, VQModelConfig)
AutoModel.register(VQModelConfig, VQModel)

__all__ = ["BackboneConfig", "Preprocessing", "VQModel", "VQModelConfig", "VQModelOutput", "VectorQuantizerConfig"]
