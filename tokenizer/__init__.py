"""Stage one: images <-> grids of codes."""

from transformers import AutoConfig, AutoModel

from codegrid.tokenizer.configuration import BackboneConfig, VQModelConfig
from codegrid.tokenizer.images import Preprocessing
from codegrid.tokenizer.modeling import VQModel, VQModelOutput
from codegrid.tokenizer.quantizers import VectorQuantizerConfig

# Importing this package lets `AutoModel.from_pretrained` load a tokenizer's folder.
AutoConfig.register(VQModelConfig.model_type, VQModelConfig)
AutoModel.register(VQModelConfig, VQModel)

__all__ = ["BackboneConfig", "Preprocessing", "VQModel", "VQModelConfig", "VQModelOutput", "VectorQuantizerConfig"]
