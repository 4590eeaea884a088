"""Trackers: started once per run and gone on with after a resume; pictures and histograms in each one's form."""

from __future__ import annotations

import importlib.util
import os
import uuid
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from torch import Tensor

from codegrid.errors import CodegridError
from codegrid.names import shown
from codegrid.pipelines.system.files import write_text
from codegrid.pipelines.system.machine import peak_memory

_PROJECT = "codegrid"  # where W&B and trackio put a run if the environment names no project
_ID_NAME = "tracker_id.txt"


class TrackerError(CodegridError):
    """A tracker cannot be used. The message says why and what to do."""


def check_trackers(names: tuple[str, ...]) -> None:
    """Look for the trackers' packages, without loading them.

    Raises:
        TrackerError: one is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise TrackerError(
                f"tracking is {list(names)}, and {name} is not installed.",
                'Install it (pip install "codegrid[tracking]"), or leave it out of --tracking.',
            )


def start_tracker(name: str, folder: Path, step: int, config: dict[str, Any]) -> GeneralTracker:
    """One of Accelerate's trackers, for a run in `folder` that goes on after `step`. Only the main process writes.

    A resumed run goes on in the same run of W&B and trackio, whose id is kept in the folder. In TensorBoard, what was
    written after `step` before the stop is hidden (the `purge_step` of its SummaryWriter).

    Args:
        config: the resolved config, sent as the run's.

    Raises:
        TrackerError: the tracker does not start, such as W&B without a login.
    """
    try:
        if name == "tensorboard":
            tracker = TensorBoardTracker("tensorboard", folder, purge_step=step + 1 if step else None)
        elif name == "wandb":
            tracker = WandBTracker(os.environ.get("WANDB_PROJECT") or _PROJECT, **_wandb_arguments(folder, config))
        else:
            # trackio finds a run by its name alone.
            named = {"name": f"{folder.name}-{_run_id(folder)}", "resume": "allow", "config": config}
            tracker = TrackioTracker(os.environ.get("TRACKIO_PROJECT") or _PROJECT, **named)
        tracker.start()
    except Exception as error:  # each tracker raises errors of its own
        raise TrackerError(
            f"{name} does not start: {str(error).strip().rstrip('.')}.",
            f"Log in to it, or leave {name} out of --tracking; then run the same command again.",
        ) from error
    return tracker


def _wandb_arguments(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `wandb.init`. They would override W&B's variables, so what these say is left out."""
    given = {"id": _run_id(folder), "resume": "allow", "name": folder.name, "dir": str(folder)}
    variables = {"id": "WANDB_RUN_ID", "resume": "WANDB_RESUME", "name": "WANDB_NAME", "dir": "WANDB_DIR"}
    chosen = {key: value for key, value in given.items() if not os.environ.get(variables[key])}
    return {**chosen, "config": config, "allow_val_change": True}


def _run_id(folder: Path) -> str:
    """The run's name with the trackers, made once and kept in its folder."""
    path = folder / _ID_NAME
    if not path.is_file():
        write_text(path, uuid.uuid4().hex[:8] + "\n")
    return path.read_text(encoding="utf-8").strip()


def how_to_watch(names: tuple[str, ...], folder: Path) -> str:
    """A sentence that says how to see what the trackers show; "" where no command does."""
    if "tensorboard" in names:
        return f"To watch it: tensorboard --logdir {shown(folder)}"
    return "To watch it: trackio show" if "trackio" in names else ""


def show_picture(tracker: GeneralTracker, name: str, step: int, picture: Tensor) -> None:
    """Pass a picture, uint8 [3, H, W], to a tracker."""
    pixels = picture.permute(1, 2, 0).numpy()
    if tracker.name == "tensorboard":  # accepts any layout, but must be told which
        tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")
    elif tracker.name == "wandb":
        tracker.log_images({name: pixels[None]}, step=step)
    else:
        import trackio

        tracker.log({name: trackio.Image(pixels)}, step=step)


def show_histogram(tracker: GeneralTracker, name: str, step: int, values: Tensor) -> None:
    """Pass the distribution of `values` [N] to a tracker."""
    numbers = values.float().cpu().numpy()
    if tracker.name == "tensorboard":
        tracker.writer.add_histogram(name, numbers, step)
    elif tracker.name == "wandb":
        import wandb

        tracker.log({name: wandb.Histogram(numbers)}, step=step)
    else:
        import trackio

        tracker.log({name: trackio.Histogram(numbers)}, step=step)


def peak_memory_gb() -> float:
    """Peak memory of this process so far, on its GPU or else in RAM, in 1e9 bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return peak_memory() / 1e9
