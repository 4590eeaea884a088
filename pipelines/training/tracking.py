"""Pictures and histograms for trackers, in the form that each tracker needs."""

from __future__ import annotations

import resource

import torch
from accelerate.tracking import GeneralTracker
from torch import Tensor


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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
