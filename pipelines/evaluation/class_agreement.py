"""Do generated images show the requested class, vary like real images, and differ from the training images?

The judge is a small classifier, trained here on the run's real images, so that nothing is downloaded. Everything runs
on the CPU in bounded memory and is reproducible for the same seed and number of threads. torch's global random state
is restored.
The judge is meant for small pictures: its first layers see all of them at half resolution.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.errors import CodegridError

_WIDTH = 24
_LEARNING_RATE = 1e-2  # peak learning rate
_SHIFT = 1  # most pixels that a training image is shifted in each direction
_PAIRS_FROM = 500  # most images per class for the diversity
_AT_ONCE = 500  # images to compare or classify at once
_NUMBERS_AT_ONCE = 16_777_216  # most float32 numbers in a chunk of training images: 64 MB


class SmallClassifier(nn.Module):
    """Three convolutions and a linear layer: images uint8 [B, H, W, C] -> logits [B, num_classes]. H, W >= 16."""

    def __init__(self, channels: int, num_classes: int, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.layers = nn.Sequential(
            *_convolution(channels, _WIDTH, 4, stride=2, pool=True),
            *_convolution(_WIDTH, 2 * _WIDTH, 3, pool=True),
            *_convolution(2 * _WIDTH, 4 * _WIDTH, 3),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(16 * 4 * _WIDTH, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(((images.float() - self.mean) / self.std).permute(0, 3, 1, 2))  # in: [B, C, H, W]


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, pool: bool = False) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=1, bias=False)
    pooling = [nn.MaxPool2d(2)] if pool else []  # before the norm, which then has a quarter of the work
    return [convolution, *pooling, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    seed: int,
    steps: int = 1100,
    batch_size: int = 64,
    shift: int | None = _SHIFT,
) -> nn.Module:
    """Train the judge with AdamW and a one-cycle learning rate, on mirrored and shifted images.

    Args:
        images: real images, uint8 [N, H, W, C].
        labels: their classes [N], integers in [0, num_classes).
        seed: fixes the starting weights, the order and the augmentation.
        shift: most pixels by which an image is shifted; None neither shifts nor mirrors.

    Returns:
        a module in evaluation mode: uint8 [B, H, W, C] -> logits [B, num_classes].

    Raises:
        CodegridError: the images are not uint8 [N, H, W, C], or the labels do not fit them.
    """
    x, y = _images(images), _labels(labels, images)
    if len(x) < 2 or int(y.min()) < 0 or int(y.max()) >= num_classes:
        raise CodegridError(
            f"There are {len(x)} images with labels from {int(y.min())} to {int(y.max())}.",
            f"Give at least two images, and labels in [0, {num_classes}).",
        )
    batch_size = min(batch_size, len(x))
    with torch.random.fork_rng(devices=[]):
        generator = torch.default_generator.manual_seed(seed)  # the fork's generator; the block restores the old state
        pixels = x.float()
        model = SmallClassifier(x.shape[3], num_classes, pixels.mean().item(), pixels.std().clamp(min=1e-3).item())
        model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps, pct_start=0.15)
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < batch_size:
                order = torch.randperm(len(x), generator=generator)
            chosen, order = order[:batch_size], order[batch_size:]
            batch = x[chosen] if shift is None else _augmented(x[chosen], generator, shift)
            logits = model(batch)
            loss = F.cross_entropy(logits, y[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _augmented(images: Tensor, generator: torch.Generator, shift: int = _SHIFT) -> Tensor:
    """Mirror half of the images and shift each by up to `shift` pixels (the edge repeats): uint8 [B, H, W, C]."""
    batch, height, width, _ = images.shape
    mirrored = torch.rand(batch, generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
    shifts = torch.randint(-shift, shift + 1, (2, batch, 1), generator=generator)
    rows = (torch.arange(height) + shifts[0]).clamp(0, height - 1)  # [B, H]
    columns = (torch.arange(width) + shifts[1]).clamp(0, width - 1)  # [B, W]
    return images[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


@torch.no_grad()
def predicted_labels(classifier: nn.Module, images: np.ndarray) -> np.ndarray:
    """The likeliest class of each image by `classifier`: uint8 [N, H, W, C] -> int64 [N]."""
    return torch.cat([classifier(part).argmax(1) for part in _images(images).split(_AT_ONCE)]).numpy()


def class_agreement(classifier: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Share in [0, 1] of the images [N, H, W, C] for which `classifier` predicts their label [N].

    Its upper bound is the same share on real images that the classifier was not trained on: compare with that.
    """
    return float((predicted_labels(classifier, images) == _labels(labels, images).numpy()).mean())


def diversity_ratio(samples: np.ndarray, sample_labels: np.ndarray, real: np.ndarray, real_labels: np.ndarray) -> float:
    """Variety within a class: mean pixel L2 distance between two samples, divided by that between two real images.

    The ratio is averaged over the classes with at least two samples and two real images; the first 500 images of each
    class count. 0: all samples of a class are the same picture. 1: they differ as much as real images do. Above 1 they
    differ more, as noise would too: read it together with the class agreement.

    Raises:
        CodegridError: no class has two samples and two different real images.
    """
    samples, real = _images(samples), _images(real)
    sample_labels, real_labels = _labels(sample_labels, samples), _labels(real_labels, real)
    ratios = []
    for label in sample_labels.unique():
        made, true = samples[sample_labels == label], real[real_labels == label]
        if len(made) >= 2 and len(true) >= 2 and (distance := _mean_pair_distance(true)) > 0:
            ratios.append(_mean_pair_distance(made) / distance)
    if not ratios:
        raise CodegridError(
            "No class has two samples and two different real images.",
            "Give more of both: diversity is that within a class.",
        )
    return float(np.mean(ratios))


def _mean_pair_distance(images: Tensor) -> float:
    return F.pdist(images[:_PAIRS_FROM].flatten(1).float()).mean().item()


def near_copy_share(samples: np.ndarray, train_images: np.ndarray, test_images: np.ndarray) -> float:
    """Share in [0, 1] of the samples that nearly copy a training image.

    The distance of an image to the training set is the pixel L2 distance to its nearest training image, mirrored or
    not. A sample is a near copy if its distance is at most half the median distance of the test images: real images
    that the model has not seen show how near a new picture comes. Compare with the share of the test images themselves,
    `near_copy_share(test_images, train_images, test_images)`, which is not 0 if real images repeat. All images are
    uint8 [N, H, W, C] of one size.
    """
    threshold = 0.5 * distances_to_nearest(test_images, train_images).median()
    return (distances_to_nearest(samples, train_images) <= threshold).float().mean().item()


@torch.no_grad()
def distances_to_nearest(images: np.ndarray, train_images: np.ndarray) -> Tensor:
    """L2 distance, in units of full pixel range, to the nearest training image or its mirror image: float32 [N]."""
    images, train_images = _images(images), _images(train_images)
    if images.shape[1:] != train_images.shape[1:] or not len(images) or not len(train_images):
        raise CodegridError(
            f"Images {list(images.shape)} cannot be compared with images {list(train_images.shape)}.",
            "Give images of one size, and at least one on each side.",
        )
    chunk = max(1, _NUMBERS_AT_ONCE // train_images[0].numel())
    nearest = []
    for part in images.split(min(_AT_ONCE, chunk)):
        rows = part.flatten(1).float() / 255  # [n, D]
        best = torch.full((len(part),), torch.inf)
        for known in train_images.split(chunk):
            for candidates in (known, known.flip(2)):
                columns = candidates.flatten(1).float() / 255  # [m, D]
                # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b; the terms with b suffice to find the minimum
                best = torch.minimum(best, (columns.square().sum(1) - 2 * rows @ columns.T).amin(1))
        nearest.append((best + rows.square().sum(1)).clamp(min=0).sqrt())
    return torch.cat(nearest)


def _images(images: np.ndarray | Tensor) -> Tensor:
    images = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images, order="C"))
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise CodegridError(f"The images are {images.dtype} {list(images.shape)}.", "Give uint8 [N, H, W, C].")
    return images


def _labels(labels: np.ndarray | Tensor, images: np.ndarray | Tensor) -> Tensor:
    labels = torch.as_tensor(labels)
    if labels.shape != (len(images),) or labels.is_floating_point():
        raise CodegridError(
            f"Labels are {labels.dtype} {list(labels.shape)}.", f"Give integers [{len(images)}], one an image."
        )
    return labels.long()
