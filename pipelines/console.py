"""What the commands show: quiet libraries, and errors as one sentence instead of a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import datasets
import transformers

from pipelines.data import DataError
from pipelines.files import OutputError
from pipelines.loading import LoadingError
from pipelines.training.run import TrainingError
from prior.codes import CodesError
from tokenizer.hub import PublishingError

# The errors whose message is meant for the user. Anything else is a defect and shows its traceback.
_FOR_USERS = (DataError, OutputError, LoadingError, CodesError, TrainingError, PublishingError, ValueError, OSError)


def guarded(run: Callable[[], Any]) -> None:
    """Run; a known error ends the command with its sentence and status 1. CODEGRID_TRACEBACK=1 shows where it arose."""
    # Our own bars say what matters; those of loading and writing small files only flicker.
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    try:
        run()
    except _FOR_USERS as error:
        if os.environ.get("CODEGRID_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
