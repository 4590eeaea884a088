"""Why a picture is left out."""

from __future__ import annotations


class BadImage(ValueError):  # noqa: N818  (it names the picture's state; callers skip it and go on)
    """A picture that must be left out.

    Args:
        reason: one snake_case word to count by: empty_file, truncated, not_an_image, unreadable, too_many_pixels,
            file_too_large, unsupported_depth, wrong_channels, needs_tifffile, too_small or extreme_aspect.
        message: a sentence for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that it survives pickling out of a DataLoader worker
        self.reason = reason

    def __str__(self) -> str:
        return self.args[1]
