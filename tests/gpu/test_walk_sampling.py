"""Whole calls of sampling on tensors that believe to be on a GPU: the host looks once a batch, after its last code."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from fake_cuda import DEVICE, HostWaitsError, NoWaits, fake_cuda, on_fake_cuda

from codegrid.pipelines import ImageGenerationPipeline
from codegrid.prior import PriorConfig, SequenceConfig, laid_out, make_prior
from codegrid.prior.architectures import ARCHITECTURES
from codegrid.prior.conditioning import ClassCondition
from codegrid.prior.conditions import CombinedCondition, PictureCondition, TextCondition
from codegrid.prior.sampling import iterate_codes
from codegrid.prior.window_sampling import iterate_windows
from codegrid.prior.windows import window_plan
from codegrid.tokenizer import BackboneConfig, VQModel, VQModelConfig

GRID, CODES = (2, 2), 24
CLASSES = ("a", "b")
FILTERS = {"top_k": 5, "top_p": 0.9, "min_p": 0.01}
SETTINGS = {
    "greedy": {"temperature": 0},
    "guided": {"guidance_scale": 2.0, "guidance_schedule": "cosine", "guidance_range": (0.2, 0.6), **FILTERS},
}
KNOWN = {"known_codes": torch.arange(12).view(3, *GRID), "redraw": torch.tensor([[True, False], [True, True]])}
KINDS = {
    "before": {"all": {}, "first codes": {"prefix_codes": KNOWN["known_codes"][:, :1]}},
    "any order": {
        "all": {"order": "random"},
        "own order": {"order": torch.arange(4).flip(0)},
        "steps": {"order": "halton", "num_steps": 3},
        "inpainting": {"order": "random", **KNOWN},
        "inpainting in steps": {"num_steps": 2, **KNOWN},
    },
    "around": {
        "all": {"num_steps": 3},
        "confidence": {"order": "confidence", "num_steps": 3},
        "inpainting": {"order": "confidence", "num_steps": 2, **KNOWN},
    },
}
WAYS = [
    pytest.param(name, way, id=f"{name}-{kind}")
    for name, record in ARCHITECTURES.items()
    for kind, way in KINDS[record.reads].items()
]
PARTS = (ClassCondition(CLASSES), PictureCondition(12, (1, 2)), TextCondition(3))
CONDITIONS = {
    "none": SequenceConfig(CODES, GRID),
    "picture": SequenceConfig(CODES, GRID, condition=PARTS[1]),
    "text": SequenceConfig(CODES, GRID, condition=PARTS[2]),
    "all three": SequenceConfig(CODES, GRID, condition=CombinedCondition(PARTS)),
}


def prior_of(architecture, sequence):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    return make_prior(PriorConfig(architecture=architecture, **sizes), sequence).eval()


def walked(architecture, sequence, labels, looks, iterate=iterate_codes, *grid, images=3, **options):
    """The codes of a call for some images, two at a time, whose drawing looks so many times."""
    model = prior_of(architecture, sequence)
    with fake_cuda() as fake, mock.patch.object(laid_out, "_state", return_value=()):
        on_fake_cuda(model, fake)
        batches = iterate(model, sequence, *grid, labels, seeds=range(images), batch_size=2, **options)
        with NoWaits(looks) as waits:
            made = list(batches)
    assert waits.looks == 0, "the host looked less often"
    return made


@pytest.mark.parametrize(("architecture", "way"), WAYS)
@pytest.mark.parametrize(("decoding", "settings"), [("eager", "greedy"), ("eager", "guided"), ("static", "guided")])
def test_sampling_looks_once_a_batch(architecture, way, decoding, settings):
    sequence = SequenceConfig(CODES, GRID, class_names=CLASSES)
    made = walked(architecture, sequence, [0, 1, 1], 2, decoding=decoding, **way, **SETTINGS[settings])
    assert [codes.shape for codes in made] == [(2, 4), (1, 4)]
    assert {codes.device for codes in made} == {DEVICE}


def test_a_look_too_many_is_seen():
    with pytest.raises(HostWaitsError):
        walked("llama", CONDITIONS["none"], None, 1)
    with pytest.raises(AssertionError, match="less often"):
        walked("llama", CONDITIONS["none"], None, 3)


@pytest.mark.parametrize(
    ("condition", "architecture"),
    [*((name, "llama") for name in CONDITIONS), *(("all three", name) for name in ARCHITECTURES if name != "llama")],
)
@pytest.mark.parametrize("decoding", ["eager", "static"])
def test_conditions_and_their_guidance_wait_for_nothing(condition, architecture, decoding):
    sequence = CONDITIONS[condition]
    values, scales = None, {}
    if condition != "none":
        values, scales = torch.zeros(3, *sequence.conditioning.value_shape, dtype=torch.int64), {"guidance_scale": 2.0}
    if condition == "all three":  # a scale for each part has eight branches, which fixed shapes do not have
        scales = {"part_guidance": (2.0, 1.5, 3.0) if decoding == "eager" else (2.0,) * 3}
    if architecture == "bert":
        scales["num_steps"] = 3
    walked(architecture, sequence, values, 2, decoding=decoding, **scales)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("decoding", ["eager", "static"])
def test_windows_look_twice_a_batch_of_a_round(architecture, decoding):
    """Once for the check, once for the codes, which the next round reads on the host."""
    sequence, grid = SequenceConfig(CODES, GRID, class_names=CLASSES), (3, 2)
    rounds = len(list(window_plan(sequence, grid).rounds()))  # of one window each
    several = {} if ARCHITECTURES[architecture].reads == "before" else {"num_steps": 2}
    options = {"decoding": decoding, "guidance_scale": 2.0, "images": 2, **several}
    made = walked(architecture, sequence, [0, 1], 2 * rounds, iterate_windows, grid, **options)
    assert [codes.shape for codes in made] == [(2, *grid)]


@pytest.fixture(scope="module")
def parts():
    backbone = BackboneConfig(
        resolution=8, ch=16, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(), z_channels=16, norm_groups=8
    )
    tokenizer = VQModel(VQModelConfig(backbone=backbone))
    sequence = SequenceConfig(tokenizer.config.quantizer_config.codebook_size, (2, 2), class_names=CLASSES)
    return tokenizer, sequence


@pytest.mark.parametrize("edits", [False, True])
def test_a_pipeline_looks_at_codes_and_at_pictures_once_a_batch(parts, edits):
    tokenizer, sequence = parts
    prior = prior_of("any_order_llama" if edits else "llama", sequence)
    pipe = ImageGenerationPipeline(tokenizer, prior, sequence)
    pictures, mask = np.zeros((3, 8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    with fake_cuda() as fake, mock.patch.object(laid_out, "_state", return_value=()):
        for net in (pipe.tokenizer, pipe.prior):
            on_fake_cuda(net, fake)
        with NoWaits(5 if edits else 8) as waits:
            if edits:  # the codes of the start, the check, the codes, their range, the pictures
                made = pipe.inpaint(list(pictures), [mask] * 3, [0, 1, 1], seed=1, progress=False)
            else:  # for each batch the check, the range of the codes, the pictures, the codes
                made = pipe([0, 1, 1], batch_size=2, seed=1, progress=False)
    assert waits.looks == 0
    assert len(made.images) == len(made.codes) == 3
