"""What trackers show besides numbers: pictures and histograms, each as the tracker wants them."""

from __future__ import annotations

import resource

import torch
from accelerate.tracking import GeneralTracker
from torch import Tensor


def show_picture(tracker: GeneralTracker, name: str, step: int, picture: Tensor) -> None:
    """Hand a picture, uint8 [3, H, W], to a tracker."""
    pixels = picture.permute(1, 2, 0).numpy()
    if tracker.name == "tensorboard":  # takes any layout, but has to be told
        tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")
    elif tracker.name == "wandb":
        tracker.log_images({name: pixels[None]}, step=step)
    else:
        import trackio

        tracker.log({name: trackio.Image(pixels)}, step=step)


def show_histogram(tracker: GeneralTracker, name: str, step: int, values: Tensor) -> None:
    """Hand the distribution of `values` [N] to a tracker."""
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
    """The most memory that this process has held so far: of its GPU, or else of the machine; in 1e9 bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
