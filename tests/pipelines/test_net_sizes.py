"""Nets too deep for the pictures: said with the sizes, before the folder is claimed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from codegrid.errors import CodegridError
from codegrid.pipelines.training.tokenizer.sizes import check_nets
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer import Preprocessing
from codegrid.tokenizer.discriminators import PatchGANConfig, StyleGANConfig, make_discriminator

DRAWN = np.random.default_rng(3)
SIZES = [4, 8, 16, 24, (8, 48), int(DRAWN.integers(8, 40)), tuple(DRAWN.integers(8, 40, 2).tolist())]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "discriminator",
    [
        *(PatchGANConfig(ndf=4, n_layers=depth) for depth in (1, 3, 4, 5)),
        *(StyleGANConfig(channels=4, num_blocks=number) for number in (1, 4)),
    ],
)
def test_what_is_refused_is_what_would_fail(tokenizer_config, tmp_path, size, discriminator):
    config = tokenizer_config(
        tmp_path, preprocessing=Preprocessing(image_size=size),
        objective={"adversarial_weight": 0.5, "discriminator": discriminator},
    )  # fmt: skip
    height, width = config.preprocessing.size
    try:
        make_discriminator(discriminator, 3)(torch.zeros(config.batch_size, 3, height, width))
        fails = False
    except (RuntimeError, ValueError):
        fails = True
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(CodegridError, match=rf"too deep for images of {height}x{width}.*(n_layers|num_blocks)"):
            check_nets(config)
    else:
        check_nets(config)
    assert torch.equal(torch.get_rng_state(), state)
    check_nets(replace(config, objective=replace(config.objective, adversarial_weight=0.0)))


@pytest.mark.parametrize("size", [8, 16, (31, 64), int(DRAWN.integers(2, 32))])
@pytest.mark.parametrize("name", ["perceptual_weight", "feature_distance_weight"])
def test_nets_that_need_32_pixels(tokenizer_config, tmp_path, size, name):
    config = tokenizer_config(tmp_path, preprocessing=Preprocessing(image_size=size), objective={name: 1.0})
    with pytest.raises(CodegridError, match=rf"at least 32 pixels a side, and .*objective\.{name} to 0"):
        check_nets(config)
    check_nets(replace(config, preprocessing=Preprocessing(image_size=(32, 40))))


def test_nothing_is_claimed(tokenizer_config, tmp_path):
    folder = tmp_path / "run"
    deep = {"adversarial_weight": 0.5, "discriminator": PatchGANConfig(ndf=8, n_layers=5, conditional=True)}
    with pytest.raises(CodegridError, match="patchgan is too deep for images of 16x16 pixels"):
        train_tokenizer(tokenizer_config(folder, objective=deep))
    assert not folder.exists()


@pytest.mark.parametrize("channels", [2, 13, int(DRAWN.integers(5, 12))])
def test_channels_that_no_picture_has(tokenizer_config, tmp_path, channels):
    """They were accepted, announced and refused at the first step."""
    folder = tmp_path / "run"
    with pytest.raises(CodegridError, match=rf"can be read with {channels} channels \(backbone\.in_channels\)"):
        train_tokenizer(tokenizer_config(folder, backbone={"in_channels": channels}))
    assert not folder.exists()
