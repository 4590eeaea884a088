"""Errors that are meant for the user. Any other exception is a bug and keeps its traceback."""

from __future__ import annotations

from typing import Any

from codegrid.names import encodable


class CodegridError(ValueError):
    """An error that the user can fix. The message is `what`, a space and `remedy`.

    Args:
        what: a sentence that says what is wrong, with its value, and ends in a full stop.
        remedy: a sentence that says what to do next.

    Attributes: `what`, `remedy`. They survive pickling, so that a worker's error is the same error in the main process.
    """

    exit_status = 1  # of a command that ends with this error

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = encodable(what)
        self.remedy = encodable(remedy)
        super().__init__(f"{self.what} {self.remedy}" if remedy else self.what)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.remedy), self.__dict__


class MissingFileError(CodegridError, FileNotFoundError):
    """A required file or folder does not exist."""


def require(condition: object, what: str, remedy: str = "") -> None:
    """Raise CodegridError(what, remedy) unless `condition` is true."""
    if not condition:
        raise CodegridError(what, remedy)
