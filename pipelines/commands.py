"""Config dataclasses and functions as command lines, by tyro. Every script ends in one call of these."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import sys
from collections.abc import Callable
from typing import Any

import tyro

from codegrid.errors import CodegridError
from codegrid.pipelines.system.console import guarded
from codegrid.pipelines.training.tokenizer.presets import CHOICES, with_choice, with_start


def run_preset(presets: dict[str, Callable[[str, str], Any]], run: Callable[[Any], Any], description: str) -> None:
    """Parse `PRESET [--field value ...]` and run; a preset's two arguments must be given by the user."""

    def parse() -> Any:
        choices = {}
        for name, preset in presets.items():
            config = preset(tyro.MISSING, tyro.MISSING)
            if name in sys.argv[1:]:
                config = _with_choices(config)
            choices[name] = ((preset.__doc__ or name).strip(), config)
        flags = (tyro.conf.AvoidSubcommands,)  # a union's member is the default's; see _with_choices
        return tyro.extras.overridable_config_cli(choices, description=description, config=flags)

    config = _parse(parse)
    guarded(lambda: run(config))


def _with_choices(config: Any) -> Any:
    """The preset's config, with the parts that `--init-from`, `--quantizer.type NAME` and the like name."""
    arguments = [part for argument in sys.argv[1:] for part in argument.split("=", 1)]
    starts = [value for flag, value in itertools.pairwise(arguments) if flag == "--init-from"]
    config = with_start(config, starts[-1]) if starts and hasattr(config, "init_from") else config
    for path in CHOICES if hasattr(config, "quantizer") else ():
        named = [value for flag, value in itertools.pairwise(arguments) if flag == f"--{path}.type"]
        config = with_choice(config, path, named[-1]) if named else config
    return config


def run_config(kind: type, run: Callable[[Any], Any], description: str) -> None:
    """Parse the fields of a config dataclass and run."""
    config = _parse(lambda: tyro.cli(kind, description=description))
    guarded(lambda: run(config))


def run_function(function: Callable[..., Any]) -> None:
    """Parse a function's arguments and run it; its docstring is the help."""
    call = _parse(lambda: tyro.cli(_later(function), description=function.__doc__))
    guarded(call)


def run_functions(functions: dict[str, Callable[..., Any]], description: str) -> None:
    """Parse `NAME [--argument value ...]` and run the function of that name."""
    later = {name: _later(function) for name, function in functions.items()}
    call = _parse(lambda: tyro.extras.subcommand_cli_from_dict(later, description=description))
    guarded(call)


def _later(function: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """The function with the same arguments that only says what to call: parsing is not running."""

    @functools.wraps(function)
    def later(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return lambda: function(*args, **kwargs)

    return later


def _parse(parse: Callable[[], Any]) -> Any:
    """A config that contradicts itself raises while it is made: that, too, is one sentence.

    tyro shows such an error in a box that names parts of its own; other mistakes stay in tyro's boxes.
    """
    parsed, boxes = [], io.StringIO()

    def run() -> None:
        try:
            with contextlib.redirect_stderr(boxes):
                parsed.append(parse())
        except SystemExit as end:
            if refused := _refused_config(end):
                raise refused from None
            sys.stderr.write(boxes.getvalue())
            raise
        sys.stderr.write(boxes.getvalue())  # warnings

    guarded(run)
    return parsed[0]


def _refused_config(end: SystemExit) -> CodegridError | None:
    """The config's own error where tyro exits because of one; None where it could not read an argument."""
    failure = end.__context__  # what tyro was handling; its `arg` is a name where it made a dataclass
    cause = failure and failure.__context__
    return cause if isinstance(getattr(failure, "arg", None), str) and isinstance(cause, CodegridError) else None
