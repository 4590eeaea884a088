"""`main` turns a command line into the call of one function. It loads no library before a command is named."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

import codegrid
from codegrid.names import encodable
from codegrid.pipelines.commands.nearest import unknown
from codegrid.pipelines.commands.table import COMMANDS, DEVELOPERS
from codegrid.pipelines.commands.threads import wait_awake_for_a_moment

HELP = {"-h", "--help"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command named by the first word (after `dev`, the second).

    Args:
        arguments: the words after `codegrid`; by default those of this process.

    Raises:
        SystemExit: after a line that starts with "error: ", with status 2 if the command line itself is wrong, and 1
            for any other error that the user can fix.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with _reader_may_leave() if not words or HELP & set(words) else contextlib.nullcontext():
        _call(words)


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Context whose output may be cut off without a traceback, as `--help | head` does."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        raise SystemExit(128 + 13) from None  # as a program that SIGPIPE has ended


def _call(words: list[str]) -> None:
    """Run the command named by the first word (after `dev`, the second) with the words after it."""
    if not words or words[0] in HELP or (words[0] == DEVELOPERS and not set(words[1:2]) - HELP):
        print(overview(developers=DEVELOPERS in words))
        return
    if words[0] == "--version":
        print(f"codegrid {codegrid.__version__}")
        return
    name = " ".join(words[: 1 + (words[0] == DEVELOPERS)])
    if name not in COMMANDS:
        names = [name for name in COMMANDS if name.startswith(f"{DEVELOPERS} ") == (words[0] == DEVELOPERS)]
        names += ["--help", "--version"] if name.startswith("-") else []
        what, remedy = unknown(name, "no command", names)
        print(f"error: {encodable(what)} {remedy} `codegrid --help` says what they do.", file=sys.stderr)
        raise SystemExit(2)
    rest = words[len(name.split()) :]
    if COMMANDS[name].first and rest and not rest[0].startswith("-"):
        rest = [COMMANDS[name].first, *rest]
    wait_awake_for_a_moment()
    from codegrid.pipelines.commands import parsing  # it loads the parser's library

    before, sys.argv = sys.argv, [f"codegrid {name}", *rest]  # evaluations record it and trackers show it
    try:
        parsing.run(COMMANDS[name], f"codegrid {name}", rest)
    finally:
        sys.argv = before


def overview(developers: bool = False) -> str:
    """The text of `codegrid --help` or `codegrid dev --help`: one line per command."""
    prefix = f"{DEVELOPERS} " if developers else ""
    shown = {
        name.removeprefix(prefix): command.summary
        for name, command in COMMANDS.items()
        if name.startswith(f"{DEVELOPERS} ") == developers
    }
    if not developers:
        shown[DEVELOPERS] = "tools for the project's developers: `codegrid dev --help`"
    width = max(map(len, shown))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in shown.items()]
    head = codegrid.__doc__ if not developers else "Tools for the project's developers."
    usage = f"usage: codegrid {prefix}NAME [OPTIONS]    codegrid {prefix}NAME --help"
    return "\n".join([usage + ("" if developers else "    codegrid --version"), "", head or "", "", *lines])
