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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NoReturn

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from codegrid.errors import CodegridError
from codegrid.pipelines.commands.mistakes import UsageError, flattened, in_known_spelling, mistake, options_of
from codegrid.pipelines.commands.nearest import unknown
from codegrid.pipelines.commands.outputs import check_output
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
            try:
                _call(command, name, list(arguments))  # exits
            except CodegridError as error:
                _refuse(error)
    _look_over(command, name, list(arguments))
    from codegrid.pipelines.system.console import guarded  # loads torch

    calls: list[Callable[[], Any]] = []
    guarded(lambda: calls.append(_call(command, name, list(arguments))))
    guarded(calls[0])


def _look_over(command: Command, name: str, arguments: list[str]) -> None:
    """Refuse a wrong command line at once, before the libraries are loaded, which takes seconds.

    Only the names and kinds of values are looked at: with stand-ins, nothing else that a config says is to be trusted.
    `--init-from` decides by a file which options there are, so that such a line has to wait.
    """
    with stand_ins() as in_force:
        if not in_force or any(word.startswith("--init") for word in arguments):
            return
        try:
            _call(command, name, arguments)
        except UsageError as error:
            _refuse(error)
        except (Exception, SystemExit):
            return


def _refuse(error: CodegridError) -> NoReturn:
    """End the process as `guarded` does, which loads torch."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(error.exit_status)


def _call(command: Command, name: str, arguments: list[str]) -> Callable[[], Any]:
    """The call that the command line requests, not made yet."""
    parsed = command.parsed
    if isinstance(parsed, Preset):
        presets = load(parsed.presets)
        word = _word(arguments, name, "preset", presets)
        config, types = _with_choices(presets[word](tyro.MISSING, tyro.MISSING), f"{name} {word}", arguments)
        kwargs = {"default": config, "registry": types}
        given = _parse(type(config), f"{name} {word}", arguments[1:], presets[word].__doc__, **kwargs)
        return _checked(lambda: load(parsed.run)(given), vars(given))
    if isinstance(parsed, Config):
        given = _parse(load(parsed.config), name, arguments, load(parsed.run).__doc__)
        return _checked(lambda: load(parsed.run)(given), vars(given))
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
        named = next((word for word in arguments if word in known), None)
        remedy = f"Write `{name} {named} ...`." if named else f"There are {', '.join(known)}."
        raise UsageError(f"`{name}` needs a {kind} as its first word.", remedy)
    raise UsageError(*unknown(arguments[0], f"no {kind} of `{name}`", known))


def _with_choices(config: Any, name: str, arguments: list[str]) -> tuple[Any, ConstructorRegistry]:
    """The preset's config with the parts chosen by `--init-from`, `--quantizer.type NAME` and similar options.

    The registry makes the help of each `type` list the choices.

    Args:
        name: the command's name with its preset, for errors.
    """
    from codegrid.pipelines.training.tokenizer.presets import CHOICES, with_choice, with_start

    parts = [part for argument in arguments for part in argument.split("=", 1)]
    starts = [value for flag, value in itertools.pairwise(parts) if flag == "--init-from"]
    config = with_start(config, starts[-1]) if starts and hasattr(config, "quantizer") else config
    kinds = {}
    for path, known in CHOICES.items() if hasattr(config, "quantizer") else ():
        fitting = [kind for kind in known if _fits(with_choice, config, path, kind)]
        named = [value for flag, value in itertools.pairwise(parts) if flag == f"--{path}.type"]
        try:
            config = with_choice(config, path, named[-1]) if named else config
        except CodegridError as error:
            raise UsageError(str(error), f"`{name} --help` says what each is.") from None
        if fitting:
            kinds[path] = {kind: known[kind] for kind in fitting}
    return config, _saying_types({id(operator.attrgetter(path)(config)): (path, of) for path, of in kinds.items()})


def _fits(with_choice: Callable[..., Any], config: Any, path: str, kind: str) -> bool:
    try:
        with_choice(config, path, kind)
    except CodegridError:
        return False
    return True


def _saying_types(kinds: dict[int, tuple[str, dict[str, type]]]) -> ConstructorRegistry:
    """A tyro registry that shows, for the dataclasses with these ids, which types there are, and what each is."""
    registry, inside = ConstructorRegistry(), []

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        path, known = kinds.get(id(info.default), ("", {}))
        if not known or inside:
            return None
        inside.append(info)  # tyro's default handling
        spec = registry.get_struct_spec(info)
        inside.pop()
        if not isinstance(spec, StructConstructorSpec):
            return None
        said = [f"one of these; `--{path}.type NAME --help` lists the options of each."]
        said += [f"{kind}: {_what_it_is(config)}." for kind, config in known.items()]
        shown = {"type": Literal[tuple(known)], "helptext": "\n".join(said)}
        return replace(spec, fields=tuple(replace(f, **shown) if f.name == "type" else f for f in spec.fields))

    return registry


def _what_it_is(config: type) -> str:
    """The first sentence about a quantizer or discriminator: of its config, or of the file that defines both."""
    text = description(config.__doc__)
    if text.startswith("Config of "):
        text = inspect.getdoc(inspect.getmodule(config)) or text
    text = re.sub(r" \([^()]*https?:[^()]*\)", "", " ".join(text.split()))
    return re.split(r"\.(?: |$)", text)[0]


def _later(function: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """A function with the same arguments that returns the call instead of making it: parsing must not run anything."""

    @functools.wraps(function)
    def later(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        return _checked(lambda: function(*args, **kwargs), given)

    return later


def _checked(call: Callable[[], Any], given: Mapping[str, Any]) -> Callable[[], Any]:
    def checked() -> Any:
        check_output(given)
        return call()

    return checked


def description(docstring: str | None) -> str:
    """The docstring's text before its sections. The help shows the arguments' texts beside the options."""
    return _SECTION.split(inspect.cleandoc(docstring or ""))[0].strip()


def _parse(kind: Any, name: str, arguments: list[str], docstring: str | None, **kwargs: Any) -> Any:
    """Parse the arguments with tyro.

    An invalid config raises while it is constructed, and tyro shows this in a box that names tyro's own parts. Here it
    becomes one sentence, and so does every other mistake.
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
        if not end.code:
            raise
        options = options_of(_help_text(parse))
        if (spelt := in_known_spelling(arguments, options)) != arguments:
            return _parse(kind, name, spelt, docstring, **kwargs)
        if found := mistake(arguments, options, name):
            raise found from None
        what = f"`{name}` cannot be read: {flattened(boxes.getvalue())}".rstrip(".")
        raise UsageError(f"{what}.", f"`{name} --help` lists the options.") from None
    sys.stderr.write(boxes.getvalue())  # warnings
    return parsed


def _refused_config(end: SystemExit) -> CodegridError | None:
    """The config's own error if it made tyro exit; None if tyro could not read an argument."""
    failure = end.__context__  # tyro's current exception; its `arg` is a name if it made a nested dataclass
    if isinstance(failure, CodegridError):  # from the outermost dataclass: tyro does not wrap it
        return failure
    cause = failure and failure.__context__
    return cause if isinstance(getattr(failure, "arg", None), str) and isinstance(cause, CodegridError) else None


def _help_text(parse: Callable[[list[str]], Any]) -> str:
    """The help text in one column, with unbroken names: tyro has no function that lists the options."""
    text, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            parse(["--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return text.getvalue()
