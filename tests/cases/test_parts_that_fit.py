"""Row "parts that do not fit each other": what a tokenizer, a prior and codes say of the codes is compared.

Priors with a fingerprint: tests/pipelines/test_generation.py; codes: test_verification.py, test_train_prior.py;
class-conditional decoders: test_class_conditional.py.
"""

import logging
import random
from dataclasses import replace

import pytest

from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.fit import misfits
from codegrid.pipelines.artifacts.loading import LoadingError
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.prior import PriorConfig, SequenceConfig, make_prior, save_prior

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
FITTING = {"codebook_size": 32, "grid_shape": (4, 4)}  # of tiny_vqmodel
TITLES = {
    "codebook_size": "codes in the codebook 32 and",
    "grid_shape": "grid of codes 4x4 and",
    "depth": "codes a position 1 and",
    "order": "order of the codes positions and",
    "tokenizer_fingerprint": "fingerprint of the tokenizer",
}


def parts(changes: dict):
    sequence = SequenceConfig(**{**FITTING, **changes})
    return make_prior(PriorConfig(**SIZES), sequence), sequence


@pytest.mark.parametrize(
    "changes",
    [
        {"codebook_size": 31},  # every code of the prior is one of the tokenizer, too
        {"grid_shape": (2, 8)},  # the same number of codes
        {"grid_shape": (2, 2), "depth": 5, "order": "grids"},
        {"codebook_size": 64, "class_names": ("a", "b")},
    ],
)
def test_written_priors_without_a_fingerprint(tiny_vqmodel, tmp_path, changes):
    refused(tiny_vqmodel, tmp_path, changes)


@pytest.mark.parametrize("seed", [1, 11])
def test_drawn_priors(tiny_vqmodel, tmp_path, seed):
    draw = random.Random(seed)
    for number in range(4):
        others = {
            "codebook_size": draw.choice([16, 33, 100]),
            "grid_shape": draw.choice([(4, 5), (8, 2), (1, 16)]),
            "depth": draw.choice([2, 3]),
            "tokenizer_fingerprint": f"{draw.getrandbits(256):064x}",
        }
        chosen = draw.sample(list(others), draw.randrange(1, 4))
        refused(tiny_vqmodel, tmp_path / str(number), {name: others[name] for name in chosen}, seed)


def refused(tokenizer, folder, changes, seed=None):
    """Refused in memory and on disk, in one sentence with every difference and both names, and nothing is written."""
    prior, sequence = parts(changes)
    with pytest.raises(LoadingError, match="do not fit each other") as raised:
        ImageGenerationPipeline(tokenizer, prior, sequence)
    named = {name for name, title in TITLES.items() if title in raised.value.what}
    assert named == set(changes) - {"class_names"}, (seed, changes)
    assert raised.value.remedy
    tokenizer.save_pretrained(folder / "tok")
    save_prior(prior, sequence, folder / "pri")
    with pytest.raises(LoadingError) as raised:
        make_pipeline(str(folder / "tok"), str(folder / "pri"), str(folder / "pipe"))
    assert str(folder / "tok") in raised.value.what
    assert str(folder / "pri") in raised.value.what
    assert not (folder / "pipe").exists()


def test_a_pipeline_whose_prior_was_exchanged_by_hand_is_not_loaded(tiny_vqmodel, tmp_path):
    fitting = ImageGenerationPipeline(tiny_vqmodel, *parts({}))
    fitting.save_pretrained(tmp_path / "pipe")
    save_prior(*parts({"grid_shape": (4, 8)}), tmp_path / "pipe" / "prior")
    with pytest.raises(LoadingError, match="grid of codes 4x4 and 4x8"):
        ImageGenerationPipeline.from_pretrained(tmp_path / "pipe")


def test_what_cannot_be_known_is_said_and_what_is_known_is_not(tiny_vqmodel, caplog):
    with caplog.at_level(logging.WARNING):
        ImageGenerationPipeline(tiny_vqmodel, *parts({}))
    assert "does not say which tokenizer made its codes" in caplog.text
    caplog.clear()
    prior, sequence = parts({"tokenizer_fingerprint": tiny_vqmodel.fingerprint()})
    with caplog.at_level(logging.WARNING):
        ImageGenerationPipeline(tiny_vqmodel, prior, sequence)
    assert caplog.text == ""
    assert misfits(tiny_vqmodel, replace(sequence, depth=2), "the one", "the other").startswith("The one and the other")
