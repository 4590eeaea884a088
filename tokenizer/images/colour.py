"""Pictures with a colour profile (ICC) -> sRGB. Phones store Display P3, cameras Adobe RGB, printers CMYK."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, features

from codegrid.errors import require

# Which mode a profile's colour space is applied to.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_GREYS = ("1", "L", "LA")
# What LittleCMS says of a broken profile.
_PROFILE_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture of 8 bits in the colours that `profile` describes -> RGB or RGBA in sRGB (perceptual intent).

    It is given back as it is where nothing is to be done: no profile, one of sRGB itself (no colour changes by more
    than 1 of 255), one that cannot be read, or one for other channels than the picture has. A broken profile is no
    reason to lose a picture.
    """
    if not profile:
        return image
    require(
        features.check("littlecms2"),
        "This Pillow has no LittleCMS, which reads colour profiles.",
        "Install Pillow from PyPI, whose wheels have it.",
    )
    found = _transform(bytes(profile))
    if found is None:
        return image
    mode, transform = found
    if (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and image.mode not in _GREYS):
        return image
    colours = transform.apply(image if image.mode == mode else image.convert(mode))
    if "A" in image.getbands():
        colours.putalpha(image.getchannel("A"))
    return colours


@lru_cache(maxsize=32)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """The mode that a profile is for, and what turns it into sRGB; None where it changes nothing or is broken."""
    try:
        stored = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES.get(stored.profile.xcolor_space.strip())
        if mode is None:
            return None
        transform = ImageCms.buildTransform(stored, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "RGB":
            steps = np.linspace(0, 255, 9).round().astype(np.uint8)
            colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(9, 81, 3)
            changed = np.asarray(transform.apply(Image.fromarray(colours)))
            if np.abs(changed.astype(int) - colours).max() <= 1:
                return None
    except _PROFILE_ERRORS:
        return None
    return mode, transform
