"""Parses command lines for config dataclasses and functions with tyro. An error is reported in one sentence."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import itertools
import operator
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from codegrid.errors import CodegridError
from codegrid.pipelines.commands.nearest import unknown, unknown_option
from codegrid.pipelines.commands.standins import stand_ins
from codegrid.pipelines.commands.table import Command, Config, Function, Functions, Preset, load

_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields|Examples?):\s*$", re.MULTILINE)


def run(command: Command, name: str, arguments: Sequence[str]) -> None:
    """Parse the arguments and call the command's function.

    Args:
        name: name with `codegrid`, as shown in usage lines and errors.
    """
    if {"-h", "--help"} & set(arguments):
        with stand_ins():
            _call(command, name, list(arguments))  # exits
    from codegrid.pipelines.system.console import guarded  # loads torch

    calls: list[Callable[[], Any]] = []
    guarded(lambda: calls.append(_call(command, name, list(arguments))))
    guarded(calls[0])


def _call(command: Command, name: str, arguments: list[str]) -> Callable[[], Any]:
    """The call that the command line requests, not made yet."""
    parsed = command.parsed
    if isinstance(parsed, Preset):
        presets = load(parsed.presets)
        word = _word(arguments, name, "preset", presets)
        config, types = _with_choices(presets[word](tyro.MISSING, tyro.MISSING), arguments)
        kwargs = {"default": config, "registry": types}
        given = _parse(type(config), f"{name} {word}", arguments[1:], presets[word].__doc__, **kwargs)
        return lambda: load(parsed.run)(given)
    if isinstance(parsed, Config):
        given = _parse(load(parsed.config), name, arguments, load(parsed.run).__doc__)
        return lambda: load(parsed.run)(given)
    if isinstance(parsed, Functions):
        functions = parsed.loaded()
        word = _word(arguments, name, "word", functions)
        name, arguments, function = f"{name} {word}", arguments[1:], functions[word]
        if inspect.isclass(function):
            return _parse(function, name, arguments, function.__doc__).run
    else:
        assert isinstance(parsed, Function)
        function = load(parsed.run)
    return _parse(_later(function), name, arguments, function.__doc__)


def _word(arguments: list[str], name: str, kind: str, known: dict[str, Callable[..., Any]]) -> str:
    """The preset or function named by the first argument. `--help` lists the names."""
    if arguments and arguments[0] in known:
        return arguments[0]
    if arguments and arguments[0] in ("-h", "--help"):
        width = max(map(len, known))
        lines = [f"  {word:<{width}}  {description(thing.__doc__).splitlines()[0]}" for word, thing in known.items()]
        usage = f"usage: {name} {kind.upper()} [OPTIONS]    {name} {kind.upper()} --help"
        print("\n".join([usage, "", *lines]))
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise CodegridError(f"`{name}` needs a {kind} first: {', '.join(known)}.")
    raise CodegridError(unknown(arguments[0], f"no {kind} of `{name}`", known))


def _with_choices(config: Any, arguments: list[str]) -> tuple[Any, ConstructorRegistry]:
    """The preset's config with the parts chosen by `--init-from`, `--quantizer.type NAME` and similar options.

    The registry makes the help of each `type` list the choices.
    """
    from codegrid.pipelines.training.tokenizer.presets import CHOICES, with_choice, with_start

    parts = [part for argument in arguments for part in argument.split("=", 1)]
    starts = [value for flag, value in itertools.pairwise(parts) if flag == "--init-from"]
    config = with_start(config, starts[-1]) if starts and hasattr(config, "quantizer") else config
    sentences = {}
    for path, known in CHOICES.items() if hasattr(config, "quantizer") else ():
        fitting = [kind for kind in known if _fits(with_choice, config, path, kind)]
        named = [value for flag, value in itertools.pairwise(parts) if flag == f"--{path}.type"]
        config = with_choice(config, path, named[-1]) if named else config
        if fitting:
            sentences[path] = f"one of {', '.join(fitting)}."
    return config, _saying_types({id(operator.attrgetter(path)(config)): text for path, text in sentences.items()})


def _fits(with_choice: Callable[..., Any], config: Any, path: str, kind: str) -> bool:
    try:
        with_choice(config, path, kind)
    except CodegridError:
        return False
    return True


def _saying_types(sentences: dict[int, str]) -> ConstructorRegistry:
    """A tyro registry that sets the help sentence of the field `type` for the dataclasses with these ids."""
    registry, inside = ConstructorRegistry(), []

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        sentence = sentences.get(id(info.default))
        if sentence is None or inside:
            return None
        inside.append(info)  # tyro's default handling
        spec = registry.get_struct_spec(info)
        inside.pop()
        if not isinstance(spec, StructConstructorSpec):
            return None
        fields = (replace(field, helptext=sentence) if field.name == "type" else field for field in spec.fields)
        return replace(spec, fields=tuple(fields))

    return registry


def _later(function: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """A function with the same arguments that returns the call instead of making it: parsing must not run anything."""

    @functools.wraps(function)
    def later(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return lambda: function(*args, **kwargs)

    return later


def description(docstring: str | None) -> str:
    """The docstring's text before its sections. The help shows the arguments' texts beside the options."""
    return _SECTION.split(inspect.cleandoc(docstring or ""))[0].strip()


def _parse(kind: Any, name: str, arguments: list[str], docstring: str | None, **kwargs: Any) -> Any:
    """Parse the arguments with tyro.

    An invalid config raises while it is constructed, and tyro shows this in a box that names tyro's own parts. Here it
    becomes one sentence, and so does an unknown option. Other mistakes stay in tyro's boxes.
    """

    def parse(words: list[str]) -> Any:
        flags = (tyro.conf.AvoidSubcommands,)  # a union keeps the default's member; see _with_choices
        return tyro.cli(kind, prog=name, description=description(docstring), args=words, config=flags, **kwargs)

    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes):
            parsed = parse(arguments)
    except SystemExit as end:
        if refused := _refused_config(end):
            raise refused from None
        if end.code and (option := _unknown_option(arguments, known := _options(parse))):
            raise CodegridError(unknown_option(option, known, name)) from None
        sys.stderr.write(boxes.getvalue())
        raise
    sys.stderr.write(boxes.getvalue())  # warnings
    return parsed


def _refused_config(end: SystemExit) -> CodegridError | None:
    """The config's own error if it made tyro exit; None if tyro could not read an argument."""
    failure = end.__context__  # tyro's current exception; its `arg` is a name if it made a nested dataclass
    if isinstance(failure, CodegridError):  # from the outermost dataclass: tyro does not wrap it
        return failure
    cause = failure and failure.__context__
    return cause if isinstance(getattr(failure, "arg", None), str) and isinstance(cause, CodegridError) else None


def _options(parse: Callable[[list[str]], Any]) -> list[str]:
    """The options' names, parsed from the help: tyro has no function that lists them."""
    shown, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"  # gives one column and unbroken names
    try:
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            parse(["--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    lines = [line.strip("│ ") for line in shown.getvalue().splitlines()]
    return [option for line in lines if line.startswith("-") for option in re.findall(r"--[A-Za-z][\w.-]*", line)]


def _unknown_option(arguments: list[str], known: list[str]) -> str | None:
    """The first argument that looks like an option but is unknown. tyro reads `_` as `-` in names."""
    for argument in arguments:
        option = argument.split("=", 1)[0]
        if re.match(r"--[A-Za-z]", option) and option.replace("_", "-") not in known:
            return option
    return None
