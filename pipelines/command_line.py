"""What every command shares: presets as subcommands, and errors as one sentence instead of a traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import datasets
import transformers
import tyro

from pipelines.data import DataError
from pipelines.files import OutputError
from pipelines.loading import LoadingError
from pipelines.training.run import TrainingError
from prior.codes import CodesError

# The errors whose message is meant for the user. Anything else is a defect and shows its traceback.
_FOR_USERS = (DataError, OutputError, LoadingError, CodesError, TrainingError, ValueError, FileNotFoundError)


def run_preset(presets: dict[str, Callable[[str, str], Any]], run: Callable[[Any], Any], description: str) -> None:
    """Parse `PRESET [--field value ...]` and run; a preset's two arguments must be given by the user."""
    choices = {
        name: ((preset.__doc__ or name).strip(), preset(tyro.MISSING, tyro.MISSING)) for name, preset in presets.items()
    }
    config = tyro.extras.overridable_config_cli(choices, description=description)
    guarded(run, config)


def run_config(kind: type, run: Callable[[Any], Any], description: str) -> None:
    """Parse the fields of a config dataclass and run."""
    guarded(lambda: run(tyro.cli(kind, description=description)))


def run_function(function: Callable[..., Any]) -> None:
    """Parse a function's arguments and run it; its docstring is the help."""
    guarded(tyro.cli(_deferred(function), description=function.__doc__))


def _deferred(function: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """The same signature, but the call happens later: errors of parsing and of running are told apart."""

    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return lambda: function(*args, **kwargs)

    return bind


def _quiet() -> None:
    """Our own bars say what matters; those of loading and writing small files only flicker."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def guarded(run: Callable[..., Any], *args: Any) -> None:
    """Run; a known error ends the command with its sentence and status 1. CODEGRID_TRACEBACK=1 shows where it arose."""
    _quiet()
    try:
        run(*args)
    except _FOR_USERS as error:
        if os.environ.get("CODEGRID_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
