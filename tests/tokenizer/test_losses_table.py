"""docs/losses.md lists every term, GAN loss and discriminator; each row is checked against its formula, by hand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from codegrid.tokenizer.discriminators import DISCRIMINATORS
from codegrid.tokenizer.losses import (
    GAN_LOSSES,
    TERMS,
    FeatureDistance,
    ObjectiveConfig,
    adaptive_weight,
    clamped_ratio,
    gradient_penalty,
    lecam_penalty,
    r1_penalty,
    reconstruction_terms,
    soft_assignments,
    soft_rate,
)

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
# Name -> (option, rest of the row).
ROWS = {name: (option, rest) for name, option, rest in re.findall(r"^\| `(\w+)` \| `([\w.]+)` \| (.*) \|$", PAGE, re.M)}
X = np.array([[0.5, -0.2, 0.9, -1.0], [0.1, 0.0, -0.3, 0.7]], dtype=np.float32)  # two images of four values
Y = np.array([[0.45, 0.3, 0.1, -0.8], [0.1, 0.05, -0.2, 0.4]], dtype=np.float32)
REAL, FAKE = np.array([1.5, 0.2, -0.4]), np.array([-2.0, 0.6, 0.1])  # logits


def as_images(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).view(2, 1, 2, 2)


def term(name: str, nets: dict[str, nn.Module] | None = None, **values) -> float:
    config = ObjectiveConfig(**{"l1_weight": 0.0, "perceptual_weight": 0.0, f"{name}_weight": 2.0, **values})
    found = reconstruction_terms(config, nets or {}, as_images(X), as_images(Y))
    assert set(found) == {name}
    return found[name].item() / 2.0


def check_l1():
    assert term("l1") == pytest.approx(np.abs(X - Y).mean())


def check_l2():
    assert term("l2") == pytest.approx(((X - Y) ** 2).mean())


def check_smooth_l1():
    error, b = np.abs(X - Y), 0.2
    expected = np.where(error < b, error**2 / (2 * b), error - b / 2).mean()
    assert term("smooth_l1", smooth_l1_beta=b) == pytest.approx(expected)


def check_log_laplace():
    b = np.abs(X - Y).mean(1)
    assert term("log_laplace") == pytest.approx((np.log(2 * b) + 1).mean(), rel=1e-5)


def check_dssim():
    from torchmetrics.functional.image import structural_similarity_index_measure as similarity

    x, y = torch.rand(2, 2, 3, 14, 17) * 2 - 1
    config = ObjectiveConfig(l1_weight=0.0, perceptual_weight=0.0, dssim_weight=0.5)
    _, places = similarity((y + 1) / 2, (x + 1) / 2, data_range=1.0, return_full_image=True)
    expected = (1 - places[..., 5:-5:2, 5:-5:2].mean()) / 2  # the windows within the image, every second one
    assert reconstruction_terms(config, {}, x, y)["dssim"].item() == pytest.approx(0.5 * expected.item(), rel=1e-4)


def check_perceptual():
    # The net's own distance is compared with torchmetrics' in test_losses.py; here: its mean over the images.
    net = lambda one, other: (one - other).flatten(1).amax(1)  # noqa: E731
    assert term("perceptual", {"perceptual": net}) == pytest.approx((X - Y).max(1).mean())


def check_feature_distance():
    class Net(nn.Module):  # two layers whose features are simple functions of the pixels
        layers = ("one", "two")

        def forward(self, images):
            return [torch.cat([images, 1 - images], 1), torch.cat([images.square(), images + 2], 1)]

    distance = FeatureDistance.__new__(FeatureDistance)
    nn.Module.__init__(distance)
    distance.net, distance.layer_weights, distance.normalize = Net(), (0.25, 3.0), True
    one, other = torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    expected = np.zeros(2)
    for weight, f, g in zip((0.25, 3.0), Net()(one), Net()(other), strict=True):
        f, g = (each.double().numpy() for each in (f, g))
        f, g = (each / np.sqrt((each**2).sum(1, keepdims=True)) for each in (f, g))
        expected += weight * ((f - g) ** 2).sum(1).mean((1, 2))
    assert distance(one, other).tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def check_adversarial():
    layer = nn.Parameter(torch.tensor([2.0, -1.0]))
    # At the layer, the gradients of the terms are twice those at the reconstruction: (3, 4) and (0, 2).
    norms = adaptive_weight(2 * layer, torch.tensor([1.5, 2.0]), torch.tensor([0.0, 1.0]), layer)
    assert clamped_ratio(*norms, 1e4).item() == pytest.approx(5 / 2, rel=1e-4)


def quadratic(pixels: torch.Tensor) -> torch.Tensor:
    """D(z) = |z|^2 / 2, whose gradient is z."""
    return pixels.square().sum((1, 2, 3))[:, None] / 2


def check_gradient_penalty():
    share = torch.rand(2, 1, 1, 1, generator=torch.Generator().manual_seed(3)).numpy().reshape(2, 1)
    lengths = np.sqrt(((share * X + (1 - share) * Y) ** 2).sum(1))
    found = gradient_penalty(quadratic, as_images(X), as_images(Y), torch.Generator().manual_seed(3))
    assert found.item() == pytest.approx(((lengths - 1) ** 2).mean(), rel=1e-5)


def check_r1():
    assert r1_penalty(quadratic, as_images(X)).item() == pytest.approx((X**2).sum(1).mean() / 2, rel=1e-5)


def check_lecam():
    found = lecam_penalty(torch.tensor(REAL), torch.tensor(FAKE), torch.tensor(0.8), torch.tensor(-0.3))
    assert found.item() == pytest.approx(((REAL + 0.3) ** 2).mean() + ((FAKE - 0.8) ** 2).mean())


def check_rate():
    distances, logits = np.array([[0.5, 1.0, 3.0], [0.2, 0.1, 0.4]]), np.array([[0.3, -1.0, 2.0], [0.0, 0.7, -0.2]])
    p = np.exp(-distances / ((0.5 + 0.1) / 2))
    p, q = p / p.sum(1, keepdims=True), np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = soft_rate(soft_assignments(torch.tensor(distances)), torch.tensor(logits).log_softmax(1))
    assert found.item() == pytest.approx(-(p * np.log(q)).sum(1).mean())


def gan(name: str, of_discriminator: float, of_generator: float) -> None:
    discriminator, generator = GAN_LOSSES[name]
    assert discriminator(torch.tensor(REAL), torch.tensor(FAKE)).item() == pytest.approx(of_discriminator)
    assert generator(torch.tensor(FAKE)).item() == pytest.approx(of_generator)


def log_sigmoid(value: np.ndarray) -> np.ndarray:
    return -np.log(1 + np.exp(-value))


def check_hinge():
    gan("hinge", (np.maximum(0, 1 - REAL).mean() + np.maximum(0, 1 + FAKE).mean()) / 2, -FAKE.mean())


def check_vanilla():
    gan("vanilla", -(log_sigmoid(REAL).mean() + log_sigmoid(-FAKE).mean()) / 2, -FAKE.mean())


def check_non_saturating():
    expected = -(log_sigmoid(REAL).mean() + log_sigmoid(-FAKE).mean()) / 2
    gan("non_saturating", expected, -log_sigmoid(FAKE).mean())


def check_least_squares():
    gan("least_squares", (((REAL - 1) ** 2).mean() + (FAKE**2).mean()) / 2, ((FAKE - 1) ** 2).mean() / 2)


def check_wasserstein():
    gan("wasserstein", FAKE.mean() - REAL.mean(), -FAKE.mean())


def test_the_tables_are_the_registries():
    assert set(ROWS) == {*TERMS, *GAN_LOSSES, *DISCRIMINATORS}


@pytest.mark.parametrize("name", [*TERMS, *GAN_LOSSES])
def test_every_row_is_what_is_computed(name):
    assert name in ROWS
    globals()[f"check_{name}"]()


@pytest.mark.parametrize("name", ROWS)
def test_every_option_is_there_and_every_published_formula_has_its_paper(name):
    option, rest = ROWS[name]
    field = option.removeprefix("objective.")
    assert hasattr(ObjectiveConfig(), field)
    assert field == {**dict.fromkeys(GAN_LOSSES, "gan_loss"), **dict.fromkeys(DISCRIMINATORS, "discriminator")}.get(
        name, f"{name}_weight"
    )
    assert name in ("l1", "l2") or re.search(r"\[(\d{4}\.\d{5}|\d{4}\.\d{4})\]\(https://arxiv.org/abs/\1\)", rest)
