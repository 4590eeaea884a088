"""Picture files -> upright RGB -> uint8 squares -> model tensors, and back.

load_image      bytes or file        -> PIL image, RGB, upright, first frame, clear parts on white
prepare         PIL image            -> uint8 [S, S, C], S = preprocessing.image_size
to_model        uint8 [B, H, W, C]   -> float32 [B, C, H, W] in [-1, 1]
to_uint8        [B, C, H, W]         -> uint8 [B, H, W, C]
"""

from codegrid.tokenizer.images.decoding import FORMATS, IMAGE_EXTENSIONS, BadImage, load_image
from codegrid.tokenizer.images.pixels import to_model, to_pil, to_uint8
from codegrid.tokenizer.images.squares import (
    TEN_CROP,
    TEN_CROP_SCALE,
    Preprocessing,
    TenCropVariant,
    prepare,
    valid_box,
)

__all__ = [
    "FORMATS",
    "IMAGE_EXTENSIONS",
    "TEN_CROP",
    "TEN_CROP_SCALE",
    "BadImage",
    "Preprocessing",
    "TenCropVariant",
    "load_image",
    "prepare",
    "to_model",
    "to_pil",
    "to_uint8",
    "valid_box",
]
