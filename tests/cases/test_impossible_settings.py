"""Row "impossible settings": all are refused before anything is loaded or computed, in both sentences.

A sweep that is stopped and one that grows are in tests/pipelines/test_evaluation.py.
"""

import random

import pytest

from codegrid.errors import CodegridError
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.evaluation.generation import evaluate_generation
from codegrid.pipelines.evaluation.reconstruct import reconstruct
from codegrid.pipelines.evaluation.sweep import ReferenceConfig, Request, check_settings
from codegrid.prior import PriorConfig, SequenceConfig, make_prior
from codegrid.prior.sampling import SamplingConfig

NOWHERE = {"pipeline": "no/pipeline/is/there", "reference": "no/pictures/are/there"}


def refused(named: str, **options) -> None:
    """The evaluation is refused for the option `named`, not for the pipeline and the reference that do not exist."""
    with pytest.raises(CodegridError) as caught:
        evaluate_generation(**{**NOWHERE, **options})
    assert named in caught.value.what, (options, caught.value.what)
    assert "no/" not in caught.value.what, (options, caught.value.what)


@pytest.mark.parametrize(
    ("named", "options"),
    [
        ("temperature", {"guidance_scales": (1.0, 2.0), "temperatures": (1.0, float("nan"))}),
        ("npz", {"pipeline": None, "samples": "x.npz", "npz": True}),
        ("data.validation_fraction", {"data": ReferenceConfig(validation_fraction=0.5)}),
    ],
)
def test_written_settings(named, options):
    refused(named, **options)


IMPOSSIBLE = {
    "num_images": lambda draw: draw.randrange(-5, 10),
    "batch_size": lambda draw: -draw.randrange(0, 9),
    "seed": lambda draw: -draw.randrange(1, 99),
    "num_reference": lambda draw: draw.choice([-1, 1, 2, 3]),
    "judge_images": lambda draw: -draw.randrange(1, 99),
    "guidance_scale": lambda draw: (1.0, draw.choice([-0.5, float("inf"), -draw.random()])),
    "temperature": lambda draw: (draw.choice([float("nan"), -1e-9, float("-inf")]),),
    "top_k": lambda draw: -draw.randrange(1, 50),
    "top_p": lambda draw: draw.choice([0.0, -draw.random(), 1 + draw.random()]),
    "save_statistics": lambda draw: f"statistics{draw.choice(['', '.pt', '.json', '.NPZ'])}",
}


@pytest.mark.parametrize("seed", [1, 17, 444])
def test_drawn_settings(seed):
    """A bad value among good ones, wherever it stands."""
    draw = random.Random(seed)
    for _ in range(20):
        named = draw.choice(list(IMPOSSIBLE))
        option = {"guidance_scale": "guidance_scales", "temperature": "temperatures"}.get(named, named)
        good = {"num_images": 50, "batch_size": 8, "seed": 3, "top_k": 10, "top_p": 0.9, "temperatures": (0.5, 1.0)}
        refused(named, **{**good, option: IMPOSSIBLE[named](draw)})


def test_what_the_prior_cannot_do_is_known_before_sampling():
    plain = SequenceConfig(codebook_size=8, grid_shape=(2, 2))
    raster = make_prior(PriorConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1), plain)
    check_settings([SamplingConfig(), SamplingConfig(temperature=0.5)], plain, raster)
    with pytest.raises(CodegridError, match=r"guidance_scales has 1\.5, 3"):
        check_settings([SamplingConfig(guidance_scale=scale) for scale in (1.0, 1.5, 3.0)], plain, raster)
    never_null = SequenceConfig(codebook_size=8, grid_shape=(2, 2), class_names=("a", "b"), null_class=False)
    with pytest.raises(CodegridError, match="null class"):
        check_settings([SamplingConfig(guidance_scale=2.0)], never_null, raster)
    with pytest.raises(CodegridError, match="num_steps"):
        check_settings([SamplingConfig()], plain, raster, [4, 2])


def test_a_setting_given_twice_is_one_row():
    request = Request("p", None, 10, 1, 0, 0, 0, guidance_scales=(1.0, 2.0, 1.0))
    assert [setting.guidance_scale for setting in request.settings(SamplingConfig())] == [1.0, 2.0]


def test_a_file_of_statistics_is_never_overwritten(tmp_path):
    (tmp_path / "there.npz").write_bytes(b"mine")
    refused("is there already", save_statistics=str(tmp_path / "there.npz"))


@pytest.mark.parametrize("options", [{"num_pictures": 0}, {"batch_size": 0}])
def test_reconstruct_refuses_numbers_first(options):
    with pytest.raises(CodegridError, match=next(iter(options))):
        reconstruct("no/tokenizer", DataConfig("no/pictures"), "out", **options)
