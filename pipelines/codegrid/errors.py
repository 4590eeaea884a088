"""Errors that are meant for the user. Any other exception is a bug and keeps its traceback."""

from __future__ import annotations

from codegrid.names import encodable


class CodegridError(ValueError):
    """An error that the user can fix. The message says what is wrong, with its value, and what to do.

    Args:
        what: a sentence that says what is wrong.
        remedy: a sentence that says what to do about it, unless `what` says so already.
    """

    exit_status = 1  # of a command that ends with this error

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(encodable(f"{what} {remedy}" if remedy else what))


class MissingFileError(CodegridError, FileNotFoundError):
    """A required file or folder does not exist."""


def require(condition: bool, message: str) -> None:
    """Raise CodegridError(message) unless `condition` holds."""
    if not condition:
        raise CodegridError(message)
