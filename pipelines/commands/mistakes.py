"""What is wrong with a command line, in one sentence. The options and their kinds are read from the help text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from codegrid.errors import CodegridError
from codegrid.names import shown
from codegrid.pipelines.commands.nearest import did_you_mean

# Names that one thing has had in one command or another; any of them is read as the name that a command has.
SYNONYMS = [
    ("--data.source", "--reference.source", "--source", "--reference"),
    ("--data.split", "--reference.split", "--split", "--reference-split"),
]

_SPOKEN = {"INT": "a whole number", "FLOAT": "a number", "STR": "a text", "PATH": "a path"}
_READERS = {"INT": int, "FLOAT": float}


class UsageError(CodegridError):
    """The command line itself is wrong: an unknown name, an option that is missing, a value of another kind."""

    exit_status = 2


class Option(NamedTuple):
    """An option of a command, as its help text shows it.

    Args:
        names: its spellings; none for a positional argument.
        kind: the metavar, such as `INT`, `{a,b}`, `{None}|STR` or `[INT [INT ...]]`; empty for a switch.
        said: the sentence about it.
        required: whether it has to be given.
    """

    names: tuple[str, ...]
    kind: str
    said: str
    required: bool

    def alternatives(self) -> list[list[str]]:
        """The sequences of kinds that its values may be: `INT|{INT INT}` is [[INT], [INT, INT]]."""
        parts = re.findall(r"\{[^}]*\}|[^|{}]+", self.kind)
        return [part.strip("{}").split(" ") if " " in part else [part] for part in parts]

    def most_values(self) -> float:
        if not self.kind:
            return 0
        return math.inf if self.kind.startswith("[") else max(map(len, self.alternatives()))

    def takes(self) -> str:
        """What its values are, in words."""
        if self.kind.startswith("["):
            return f"any number of values, each {_spoken(self.item())}"
        return " or ".join(" and ".join(map(_spoken, kinds)) for kinds in self.alternatives())

    def item(self) -> str:
        """The kind of one value of a list."""
        return self.kind[1:].split(" [")[0]

    def fits(self, values: Sequence[str]) -> bool:
        if self.kind.startswith("["):
            return all(_fits(value, self.item()) for value in values)
        return any(
            len(kinds) == len(values) and all(map(_fits, values, kinds)) for kinds in self.alternatives() or [[]]
        )


def options_of(help_text: str) -> list[Option]:
    """The options of a help text that was made with one column (`COLUMNS=100`)."""
    found: list[tuple[str, str]] = []
    inside = False
    for line in (line.strip("│").rstrip() for line in help_text.splitlines()):
        is_head = re.search(r"\b(options|positional arguments)\b", line) and not line.startswith("  ")
        if is_head and not line.startswith("usage"):
            inside = True
        elif inside and re.match(r" +(--?[A-Za-z]|STR|INT|\{)", line) and len(line) - len(line.lstrip()) < 4:
            invocation, _, said = line.strip().partition("  ")
            found.append((invocation, said.strip()))
        elif found and line.startswith("    "):
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}".strip())
    return [_option(invocation, said) for invocation, said in found]


def mistake(arguments: Sequence[str], options: list[Option], command: str) -> UsageError | None:
    """The first mistake of a command line that was refused; None if the options do not show one.

    Args:
        arguments: the words after the command's name.
        command: the command's name, for the sentences.
    """
    by_name = {name: option for option in options for name in option.names}
    free = [option for option in options if not option.names]
    given, place, last = set(), 0, None
    helps = f"`{command} --help` lists the options."
    while place < len(arguments):
        word, has_value, value = arguments[place].partition("=")
        place += 1
        if not _is_option(word):
            if not free and last and not last.kind:
                return _needless_value(last, arguments[place - 1])
            plain = "--" + word.lstrip("\u2013\u2014\u2212-")
            if not free and word[:1] in tuple("\u2013\u2014\u2212") and plain in by_name:  # dashes of a text processor
                return UsageError(f"{shown(word)} is no option: its dash is none of the keyboard.", f"Write {plain}.")
            if not free:
                remedy = f"Write its option before it, or a name with spaces in quotes; {helps}"
                return UsageError(f"{shown(arguments[place - 1])!r} belongs to no option of `{command}`.", remedy)
            given.add(free.pop(0))
            continue
        name = re.sub("_", "-", word)
        if name not in by_name:
            remedy = did_you_mean(name, by_name) or helps
            return UsageError(f"`{command}` has no option {shown(word)}.", remedy.strip())
        option = by_name[name]
        given.add(last := option)
        values = [value] if has_value else []
        while not has_value and place < len(arguments) and len(values) < option.most_values():
            if _is_option(arguments[place]):
                break
            values.append(arguments[place])
            place += 1
        if not option.kind and has_value:
            return _needless_value(option, value)
        if option.kind and not option.fits(values):
            return _wrong_value(word, option, values)
    return _missing([option for option in options if option.required and option not in given], command)


def in_known_spelling(arguments: Sequence[str], options: list[Option]) -> list[str]:
    """The words with other names of an option (such as `--source` for `--data.source`) as the command spells them."""
    known = {name for option in options for name in option.names}
    words = []
    for argument in arguments:
        word, has_value, value = argument.partition("=")
        name = word.replace("_", "-")
        others = next((group for group in SYNONYMS if name in group and name not in known), ())
        spelt = next((other for other in others if other in known), word)
        words.append(f"{spelt}{has_value}{value}")
    return words


def flattened(box: str) -> str:
    """The text of a parser's box on one line, without its frame."""
    return " ".join(re.sub(r"[╭╮╰╯│─]+", " ", box).split())


def _option(invocation: str, said: str) -> Option:
    names = tuple(re.findall(r"--?[A-Za-z][\w.-]*", invocation.partition(" {")[0].partition(" [")[0]))
    kind = invocation if not names else re.sub(r"^(--?[A-Za-z][\w.-]*(, )?)+", "", invocation).strip()
    sentence = re.sub(r"\s*\((default: [^()]*|required)\)$", "", said)
    return Option(names, kind, sentence, said.endswith("(required)"))


def _is_option(word: str) -> bool:
    return re.match(r"--?[A-Za-z]", word) is not None


def _needless_value(option: Option, value: str) -> UsageError:
    return UsageError(
        f"{option.names[0]} takes no value, and {shown(value)!r} follows it.", f"Write {' or '.join(option.names)}."
    )


def _wrong_value(word: str, option: Option, values: list[str]) -> UsageError:
    choices = [name for kinds in option.alternatives() for kind in kinds for name in _choices(kind)]
    meant = did_you_mean(values[0], choices, least=0.7) if len(values) == 1 else ""
    text = "has no value" if not values else f"is {shown(' '.join(values))!r}"
    return UsageError(f"{word} {text}.", f"{meant}It takes {option.takes()}: {option.said}")


def _missing(missing: list[Option], command: str) -> UsageError | None:
    if not missing:
        return None
    names = [option.names[0] if option.names else "a first word" for option in missing]
    listed = ", ".join(names[:-1]) + (" and " if names[1:] else "") + names[-1]
    if len(missing) > 1:
        return UsageError(f"`{command}` needs {listed}.", f"Add them; `{command} --help` says what each is.")
    return UsageError(f"`{command}` needs {listed}.", f"Add it: {missing[0].said}")


def _choices(kind: str) -> list[str]:
    return kind.strip("{}").split(",") if kind.startswith("{") else []


def _spoken(kind: str) -> str:
    if choices := _choices(kind):
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    return _SPOKEN.get(kind, kind)


def _fits(value: str, kind: str) -> bool:
    if kind.startswith("{"):
        return value in _choices(kind)
    try:
        _READERS.get(kind, str)(value)
    except ValueError:
        return False
    return True
