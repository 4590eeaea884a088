"""The errors that are meant for the user. Whatever is none of them is a defect, and keeps its traceback."""

from __future__ import annotations

from codegrid.names import encodable


class CodegridError(ValueError):
    """Something that the user can mend: the message says what is wrong, with its value, and what to do.

    Args:
        what: a sentence that names the thing.
        remedy: a sentence that says what to do about it, where `what` does not say so already.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(encodable(f"{what} {remedy}" if remedy else what))


class MissingFileError(CodegridError, FileNotFoundError):
    """A file or folder that is needed is not there."""


def require(condition: bool, message: str) -> None:
    """Raise CodegridError(message) unless `condition` holds."""
    if not condition:
        raise CodegridError(message)
