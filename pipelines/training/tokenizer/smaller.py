"""Pictures smaller than the tokenizer's: counted before training, since most presets scale them up."""

from __future__ import annotations

from codegrid.pipelines.data.records import DataError, ImageSource
from codegrid.pipelines.training.look import is_smaller, sizes_of
from codegrid.tokenizer.images import Preprocessing

_MOST_SIZES = 500  # headers that are read, spread over the source


def describe_smaller(source: ImageSource, preprocessing: Preprocessing) -> str:
    """A line about the pictures smaller than `preprocessing.image_size`, and what becomes of them; "" without any.

    Raises:
        DataError: all pictures are smaller, and they are to be left out.
    """
    if preprocessing.fit == "pad":
        return ""
    sizes, _ = sizes_of(source, _MOST_SIZES)
    number = sum(is_smaller(size, preprocessing) for size in sizes)
    if not number:
        return ""
    wanted, left_out, some = preprocessing.size_text, preprocessing.smaller == "skip", len(source) > _MOST_SIZES
    if left_out and number == len(sizes) and not some:
        width, height = max(sizes, key=min)
        raise DataError(
            f"All {number:,} pictures are smaller than {wanted} pixels (the largest is {width}x{height}), and "
            'preprocessing.smaller is "skip".',
            "Set --preprocessing.smaller upscale, or a smaller preprocessing.image_size.",
        )
    of = f"{number:,} of {len(sizes):,} pictures looked at" if some else f"{number:,} of {len(sizes):,} pictures"
    what = "left out (--preprocessing.smaller upscale takes them)" if left_out else "scaled up"
    more = "" if left_out else "; --preprocessing.smaller skip leaves them out"
    return f"Smaller than {wanted} pixels: {of}, {what}{more}."
