"""Pictures -> upright RGB -> uint8 of one size -> model tensors, and back.

to_images       any pictures         -> float32 [N, C, H, W] in [-1, 1]: the whole way, for `encode`
to_square       any picture          -> uint8 [H, W, C]: open_picture, then prepare
to_whole        any picture          -> uint8 [H, W, C] in its own size
open_picture    any picture          -> PIL image, or `Bands` of other numbers of channels, as `Preprocessing` says
load_image      bytes, file or PIL   -> PIL image, RGB, upright, first frame, clear parts on white
prepare         PIL image            -> uint8 [H, W, C], H x W = preprocessing.image_size
to_model        uint8 [B, H, W, C]   -> float32 [B, C, H, W] in [-1, 1]
to_uint8        [B, C, H, W]         -> uint8 [B, H, W, C]
"""

from codegrid.tokenizer.images.bands import Bands
from codegrid.tokenizer.images.decoding import (
    ARRAY_EXTENSION,
    FORMATS,
    HAS_HEIF,
    IMAGE_EXTENSIONS,
    load_image,
    read_file,
)
from codegrid.tokenizer.images.door import Picture, open_picture, to_images, to_square
from codegrid.tokenizer.images.pixels import check_colours, for_people, to_model, to_pil, to_uint8
from codegrid.tokenizer.images.reasons import BadImage
from codegrid.tokenizer.images.squares import (
    TEN_CROP,
    TEN_CROP_SCALE,
    Preprocessing,
    TenCropVariant,
    check_size,
    prepare,
    valid_box,
)
from codegrid.tokenizer.images.whole import Whole, to_whole

__all__ = [
    "ARRAY_EXTENSION",
    "FORMATS",
    "HAS_HEIF",
    "IMAGE_EXTENSIONS",
    "TEN_CROP",
    "TEN_CROP_SCALE",
    "BadImage",
    "Bands",
    "Picture",
    "Preprocessing",
    "TenCropVariant",
    "Whole",
    "check_colours",
    "check_size",
    "for_people",
    "load_image",
    "open_picture",
    "prepare",
    "read_file",
    "to_images",
    "to_model",
    "to_pil",
    "to_square",
    "to_uint8",
    "to_whole",
    "valid_box",
]
