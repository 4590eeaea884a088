"""Row "a command that failed": it leaves no folder, or one that the right command takes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tiny_runs import prior_run, tokenizer_run, write_pictures

from codegrid.errors import CodegridError
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.system.files import OutputError
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.pipelines.training.tokenizer import train
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.losses import ObjectiveConfig

SEEDS = [5]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def tokenizer(pictures, tmp_path_factory) -> Path:
    return train_tokenizer(tokenizer_run(tmp_path_factory.mktemp("tokenizer") / "run", pictures))


@pytest.fixture(scope="module")
def codes(tokenizer, pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("codes") / "codes"
    return tokenize_dataset(TokenizationConfig(str(tokenizer), DataConfig(str(pictures)), str(folder), device="cpu"))


# What is wrong only shows when parts, data or packages are looked at.
def without_weights(config: TokenizerTrainingConfig) -> TokenizerTrainingConfig:
    return replace(config, objective=ObjectiveConfig(adversarial_weight=0, perceptual_weight=1, perceptual_net="vgg"))


def from_nowhere(config: TokenizerTrainingConfig) -> TokenizerTrainingConfig:
    return replace(config, init_from=str(Path(config.output_dir).parent / "nowhere"))


def uneven(config: TokenizerTrainingConfig) -> TokenizerTrainingConfig:
    return replace(config, gradient_accumulation_steps=3)


def without_tracker(config: TokenizerTrainingConfig) -> TokenizerTrainingConfig:
    return replace(config, tracking=("trackio",))


WRONG = [without_weights, from_nowhere, uneven, without_tracker]


@pytest.mark.parametrize("wrong", [*WRONG[1:], *SEEDS])
def test_a_refused_command_leaves_no_folder(wrong, pictures, tmp_path, monkeypatch):
    """Each way is wrong in its own part; one of all is drawn for the folder's depth."""
    if isinstance(wrong, int):
        wrong = random.Random(wrong).choice(WRONG[1:])
    monkeypatch.setitem(__import__("sys").modules, "trackio", None)
    config = tokenizer_run(tmp_path / "deep" / "run", pictures)
    with pytest.raises(CodegridError):
        train_tokenizer(wrong(config))
    assert not (tmp_path / "deep").exists(), wrong.__name__
    train_tokenizer(config)


def fails_at_step(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = train.train_step, iter(range(100))

    def failing(*args, **kwargs):
        if next(calls) == number:
            raise CodegridError("It fails.", "Nothing to do.")
        return original(*args, **kwargs)

    monkeypatch.setattr(train, "train_step", failing)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_claim_without_results_is_replaced_and_that_is_said(seed, pictures, tmp_path, monkeypatch, capsys):
    draw = random.Random(seed)
    other = draw.choice([{"batch_size": 2}, {"seed": 9}, {"optimizer": OptimizerConfig(learning_rate=0.01)}])
    config = tokenizer_run(tmp_path / "run", pictures)
    with monkeypatch.context() as patch:
        fails_at_step(draw.randrange(2), patch)
        with pytest.raises(CodegridError, match="It fails"):
            train_tokenizer(replace(config, log_every=1, **other))
    capsys.readouterr()
    train_tokenizer(config)
    said = capsys.readouterr().out
    assert said.count("was claimed by a run that saved nothing: this one takes its place.") == 1, (seed, other)
    assert {line["step"] for line in train_metrics(tmp_path / "run")} == {2}
    VQModel.from_pretrained(tmp_path / "run")
    train_tokenizer(config)
    assert "takes its place" not in capsys.readouterr().out


def train_metrics(folder: Path) -> list[dict]:
    from codegrid.pipelines.training.run import read_metrics

    return read_metrics(folder)


def test_what_has_results_is_never_replaced(pictures, codes, tmp_path):
    config = tokenizer_run(tmp_path / "run", pictures)
    run = train_tokenizer(config)
    before = (run / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="seed was 0, is 1"):
        train_tokenizer(replace(config, seed=1))
    with pytest.raises(OutputError, match="holds the training run of a tokenizer") as other:
        train_prior(prior_run(run, codes))
    assert len(str(other.value)) < 300
    for path in (run / "checkpoints").glob("step-*"):
        __import__("shutil").rmtree(path)
    for again in (config, replace(config, seed=1)):
        with pytest.raises(OutputError, match="a finished tokenizer whose checkpoints are gone"):
            train_tokenizer(again)
    assert (run / "model.safetensors").read_bytes() == before


def folder_of_codes(folder: Path, codes: Path, tokenizer: Path) -> str:
    __import__("shutil").copytree(codes, folder)
    return "a code data set"


def folder_of_a_model(folder: Path, codes: Path, tokenizer: Path) -> str:
    VQModel.from_pretrained(tokenizer).save_pretrained(folder)
    return "a model"


def folder_of_a_pipeline(folder: Path, codes: Path, tokenizer: Path) -> str:
    (folder / "prior").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    return "a pipeline"


def folder_of_pictures(folder: Path, codes: Path, tokenizer: Path) -> str:
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    (folder / "b.txt").write_text("b")
    return "a.png and 1 more"


@pytest.mark.parametrize("kind", [folder_of_codes, folder_of_a_model, folder_of_a_pipeline, folder_of_pictures])
def test_a_folder_of_another_kind_is_named(kind, pictures, codes, tokenizer, tmp_path):
    what = kind(tmp_path / "there", codes, tokenizer)
    names = sorted(path.name for path in (tmp_path / "there").iterdir())
    with pytest.raises(OutputError, match=f"holds no training run, but {what}") as refused:
        train_tokenizer(tokenizer_run(tmp_path / "there", pictures))
    assert "Choose another --output-dir." in str(refused.value)
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == names
