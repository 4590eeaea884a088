"""Stage one: images <-> grids of codes."""

from tokenizer.configuration import BackboneConfig, VQModelConfig
from tokenizer.images import Preprocessing
from tokenizer.modeling import VQModel, VQModelOutput
from tokenizer.quantizers import VectorQuantizerConfig

__all__ = ["BackboneConfig", "Preprocessing", "VQModel", "VQModelConfig", "VQModelOutput", "VectorQuantizerConfig"]
