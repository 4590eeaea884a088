"""Row "questions one cannot ask": the likelihood of codes and pictures, of a prior's own data set and of others'.

tests/prior/test_likelihood.py has the properties of the likelihood itself.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from codegrid.errors import CodegridError
from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.evaluation.prior import evaluate_prior
from codegrid.prior.codes import CodesError, open_codes

SAVED = Path(__file__).parents[1] / "saved_by_be0a219"


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = shutil.copytree(SAVED, tmp_path / "saved")
    monkeypatch.chdir(folder)
    return folder


def test_a_priors_score_on_codes(saved, capsys):
    evaluate_prior("prior", "codes", "out", validation_fraction=0)
    record = json.loads((saved / "out" / "prior.json").read_text())
    scores = record["results"][0]
    assert scores["num_rows"] == 24
    assert scores["bits_per_code"] == pytest.approx(scores["nats_per_code"] / np.log(2))
    assert scores["bits_per_pixel"] == pytest.approx(scores["bits_per_image"] / 256)
    of_classes = record["by_class"].values()
    assert sum(one["num_rows"] for one in of_classes) == 24
    together = sum(one["num_rows"] * one["nats_per_code"] for one in of_classes) / 24
    assert together == pytest.approx(scores["nats_per_code"])
    assert "All 24 rows" in capsys.readouterr().out
    # As the pipeline says of the same codes, and without classes.
    pipe = ImageGenerationPipeline.from_pretrained("pipeline")
    data = open_codes("codes")
    codes = torch.from_numpy(data.codes(np.arange(24))).reshape(-1, *pipe.sequence.grid_shape)
    nats = -pipe.log_likelihood(codes, data.labels.tolist()) / pipe.sequence.length
    assert nats.mean().item() == pytest.approx(scores["nats_per_code"], abs=1e-5)
    evaluate_prior("prior", "codes", "plain", validation_fraction=0, unconditional=True)
    plain = json.loads((saved / "plain" / "prior.json").read_text())["results"][0]["nats_per_code"]
    assert plain == pytest.approx(-(pipe.log_likelihood(codes) / pipe.sequence.length).mean().item(), abs=1e-5)
    assert plain != scores["nats_per_code"]
    pictures = sorted((saved / "images").rglob("*.png"))[:3]
    assert pipe.log_likelihood(pictures, "disc").shape == (3,)
    torch.testing.assert_close(pipe.log_likelihood(pictures), pipe.log_likelihood(pipe.encode(pictures)))


def _other(field: str, value: object):
    def change(manifest: dict) -> None:
        manifest[field] = value

    return change


# Three written ones, and one drawn: what the codes say otherwise than the prior.
WRITTEN = {
    "another tokenizer": _other("tokenizer_fingerprint", "ab" * 32),
    "another grid": _other("grid_shape", [1, 4]),
    "other classes": _other("class_names", ["disc", "circle"]),
}


def drawn(seed: int):
    draw = np.random.default_rng(seed)
    field = str(draw.choice(["tokenizer_fingerprint", "class_names", "codebook_size"]))
    if field == "tokenizer_fingerprint":
        return _other(field, bytes(draw.integers(0, 256, 32).tolist()).hex())
    if field == "codebook_size":
        return _other(field, int(draw.integers(500, 9000)))
    return _other(field, [f"class {n}" for n in draw.permutation(2)])


@pytest.mark.parametrize("change", [*WRITTEN.values(), drawn(7)], ids=[*WRITTEN, "drawn 7"])
def test_codes_that_do_not_fit_are_refused_and_nothing_is_written(saved, change):
    path = saved / "codes" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(CodesError) as error:
        evaluate_prior("prior", "codes", "out")
    assert error.value.remedy
    assert not (saved / "out").exists()


def test_shares_that_hold_nothing_out_are_refused(saved):
    for fraction in (-0.1, 1.0, 1e-9):
        with pytest.raises(CodegridError, match="validation"):
            evaluate_prior("prior", "codes", "out", validation_fraction=fraction)
    assert not (saved / "out").exists()


def test_its_own_run_knows_what_was_held_out(saved, capsys):
    """A run's folder says which codes it held out; other codes of its tokenizer are scored whole, and it is said."""
    config = {"codes": "codes", "validation_fraction": 0.3}
    (saved / "prior" / "training_config.json").write_text(json.dumps(config))
    made_of = {"tokenizer_fingerprint": open_codes("codes").manifest.tokenizer_fingerprint}
    (saved / "prior" / "made_from.json").write_text(json.dumps(made_of))
    evaluate_prior("prior", "codes", "out")
    held_out = len(open_codes("codes").split(0.3)[1])
    assert f"The {held_out} rows of 24" in capsys.readouterr().out
    shutil.copytree(saved / "codes", saved / "copy")
    evaluate_prior("prior", "copy", "other")
    assert "All 24 rows" in capsys.readouterr().out
