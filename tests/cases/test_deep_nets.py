"""Row "nets too deep for the picture": refused with the sizes before anything is read, built or claimed.

The rule for each net is tested in tests/pipelines/test_net_sizes.py; here sizes and depths are drawn.
"""

from __future__ import annotations

import random
import re

import pytest
import torch
from tiny_runs import tokenizer_run

from codegrid.errors import CodegridError
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.tokenizer.sizes import check_nets
from codegrid.tokenizer import Preprocessing
from codegrid.tokenizer.discriminators import DISCRIMINATORS, make_discriminator


def judging(tmp_path, kind: str, size: tuple[int, int], depth: int) -> TokenizerTrainingConfig:
    field = {"patchgan": "n_layers", "stylegan": "num_blocks"}[kind]
    discriminator = DISCRIMINATORS[kind](**{field: depth})
    return tokenizer_run(
        tmp_path / "run",
        tmp_path / "nothing",
        preprocessing=Preprocessing(image_size=size),
        backbone={"resolution": size[0]} if size[0] == size[1] else {},
        objective={"adversarial_weight": 0.5, "discriminator": discriminator},
    )


def fits(config: TokenizerTrainingConfig) -> bool:
    """Whether the net takes such pictures, by trying with storage."""
    net = make_discriminator(config.objective.discriminator, 3)
    try:
        with torch.no_grad():
            net(torch.zeros(4, 3, *config.preprocessing.size))
    except (RuntimeError, ValueError):
        return False
    return True


WRITTEN = [("patchgan", (8, 8), 5), ("stylegan", (8, 8), 6), ("patchgan", (16, 8), 4)]


@pytest.mark.parametrize("case", [*WRITTEN, *range(6)])
def test_a_discriminator_is_refused_exactly_where_it_fails(case, tmp_path):
    if isinstance(case, int):
        draw = random.Random(case)
        side = draw.choice([8, 16, 24, 32])
        case = (draw.choice(["patchgan", "stylegan"]), (side, side), draw.randint(1, 6))
    kind, size, depth = case
    config = judging(tmp_path, kind, size, depth)
    if fits(config):
        check_nets(config)
        return
    size_text = config.preprocessing.size_text
    with pytest.raises(CodegridError, match=rf"{kind} is too deep for images of {re.escape(size_text)}") as e:
        check_nets(config)
    assert str(depth) in str(e.value), case
    assert "\n" not in str(e.value), case


@pytest.mark.parametrize("name", ["perceptual_weight", "feature_distance_weight"])
@pytest.mark.parametrize("size", [8, 16, (16, 64)])
def test_nets_of_features_need_32_pixels(name, size, tmp_path):
    config = tokenizer_run(
        tmp_path / "run", tmp_path / "nothing", preprocessing=Preprocessing(image_size=size), objective={name: 1.0}
    )
    with pytest.raises(CodegridError, match=rf"at least 32 pixels a side.*objective.{name}"):
        check_nets(config)
