"""Going on with a run: with the same settings and data, with more of them, and never with others."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.system.files import OutputError
from codegrid.pipelines.training.claim import Identity
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer import VQModel


@pytest.fixture
def own(pictures: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pictures, tmp_path / "own")


def add(folder: Path) -> None:
    Image.new("RGB", (24, 20), (9, 200, 9)).save(folder / "noise" / "zz.png")


def remove(folder: Path) -> None:
    next((folder / "stripes").iterdir()).unlink()


def change(folder: Path) -> None:
    Image.new("RGB", (24, 20), (200, 9, 9)).save(folder / "gradient" / "0.png")


def swap(folder: Path) -> None:
    """One more and one less: as many as before."""
    add(folder)
    remove(folder)


def rename(folder: Path) -> None:
    (folder / "noise" / "3.png").rename(folder / "noise" / "drei.png")


def drawn(folder: Path) -> None:
    """Any of them, drawn from a seed, loses its last byte."""
    paths = sorted(folder.rglob("*.png"))
    path = paths[np.random.default_rng(13).integers(len(paths))]
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("happens", [remove, change, swap, rename, drawn])
def test_a_run_is_not_gone_on_with_on_other_pictures(tokenizer_config, own, tmp_path, happens):
    data = DataConfig(str(own), validation_fraction=0.2)
    config = tokenizer_config(tmp_path / "run", data=data, max_steps=2, save_every=1)
    train_tokenizer(config)
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    happens(own)
    with pytest.raises(OutputError, match=r"was trained on .*own: 18 images.*are gone or changed.*--init-from"):
        train_tokenizer(config)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


def test_pictures_may_come_in_addition_and_that_is_said(tokenizer_config, own, tmp_path, capsys):
    data = DataConfig(str(own), validation_fraction=0.2)
    config = tokenizer_config(tmp_path / "run", data=data, max_steps=2, save_every=1)
    train_tokenizer(config)
    add(own)
    train_tokenizer(config)
    assert "The data has grown since the run began" in capsys.readouterr().out
    train_tokenizer(config)
    assert "has grown" not in capsys.readouterr().out  # once
    assert "19 images" in json.loads((tmp_path / "run" / "made_from.json").read_text())["description"]


def test_the_validation_pictures_count_too(tokenizer_config, own, tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "val"):
        shutil.copytree(own, tmp_path / "data" / split)
    data = DataConfig(str(tmp_path / "data"), validation_split="val")
    config = tokenizer_config(tmp_path / "run", data=data, max_steps=2, save_every=1)
    train_tokenizer(config)
    remove(tmp_path / "data" / "val")
    with pytest.raises(OutputError, match="1 of 36 are gone or changed"):
        train_tokenizer(config)


def test_a_longer_run_and_other_micro_batches_go_on_and_are_said(tokenizer_config, tmp_path, capsys):
    config = tokenizer_config(tmp_path / "run", max_steps=2, save_every=1)
    train_tokenizer(config)
    train_tokenizer(replace(config, max_steps=4, gradient_accumulation_steps=2))
    printed = capsys.readouterr().out
    assert "gradient_accumulation_steps was 1, is 2; max_steps was 2, is 4." in printed
    assert "after step 2" in printed
    with pytest.raises(OutputError, match="Different are: max_steps was 4, is 3"):
        train_tokenizer(replace(config, max_steps=3))
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-000000004" / "state.json").read_text())
    assert "18 images" in state["made_from"]


def test_a_prior_is_not_gone_on_with_on_another_tokenizers_codes(
    prior_config, codes, tokenizer_folder, pictures, tmp_path
):
    """A tokenizer was trained anew at the same path, and its codes were made anew at the same path."""
    own = shutil.copytree(codes, tmp_path / "codes")
    config = prior_config(tmp_path / "run", codes=str(own), max_steps=2, save_every=1)
    train_prior(config)
    exported = load_file(tmp_path / "run" / "model.safetensors")
    model = VQModel.from_pretrained(tokenizer_folder)
    with torch.no_grad():
        model.quant_conv.weight.add_(0.01)
    model.save_pretrained(tmp_path / "tokenizer")
    shutil.rmtree(own)
    tokenize_dataset(TokenizationConfig(str(tmp_path / "tokenizer"), DataConfig(str(pictures)), str(own), device="cpu"))
    with pytest.raises(OutputError, match=r"was trained on .* rows of codes of .*tokenizer_fingerprint was"):
        train_prior(config)
    for name, tensor in load_file(tmp_path / "run" / "model.safetensors").items():
        assert torch.equal(tensor, exported[name])


def test_a_prior_goes_on_with_codes_that_have_grown(prior_config, tokenizer_folder, own, tmp_path, capsys):
    tokenization = TokenizationConfig(
        str(tokenizer_folder), DataConfig(str(own)), str(tmp_path / "codes"), device="cpu"
    )
    tokenize_dataset(tokenization)
    config = prior_config(tmp_path / "run", codes=tokenization.output_dir, max_steps=2, save_every=1)
    train_prior(config)
    add(own)
    tokenize_dataset(tokenization)
    train_prior(replace(config, max_steps=3))
    assert "18 rows of codes" in (printed := capsys.readouterr().out)
    assert "The data has grown since the run began" in printed


def test_an_identity_is_saved_and_read_whole(tmp_path):
    identity = Identity.of("three things", {"a": (1, 2)}, [b"12345678", b"\xff" * 8, b"abcdefgh and more"])
    identity.save(tmp_path)
    found = Identity.load(tmp_path)
    assert (found.description, found.fixed) == ("three things", {"a": [1, 2]})
    assert found.members.tolist() == sorted(identity.members.tolist())
    assert Identity.load(tmp_path / "elsewhere") is None


def test_a_copy_of_the_pictures_goes_on_and_that_is_said(tokenizer_config, own, tmp_path, capsys):
    """`cp -r` gives files other times. What they hold decides, not where they lie and since when."""
    data = DataConfig(str(own), validation_fraction=0.2)
    config = tokenizer_config(tmp_path / "run", data=data, max_steps=2, save_every=1)
    train_tokenizer(config)
    copy = Path(shutil.copytree(own, tmp_path / "copy", copy_function=shutil.copyfile))
    for path in copy.rglob("*.png"):
        os.utime(path, ns=(7, 7))
    train_tokenizer(replace(config, data=replace(data, source=str(copy))))
    printed = capsys.readouterr().out
    assert f"data.source was '{own}', is '{copy}'" in printed
    assert "what they hold is the same" in printed
    train_tokenizer(replace(config, data=replace(data, source=str(copy))))
    assert "what they hold" not in capsys.readouterr().out  # once
    (copy / "noise" / "0.png").write_bytes((copy / "noise" / "1.png").read_bytes())
    with pytest.raises(OutputError, match="1 of 18 are gone or changed"):
        train_tokenizer(replace(config, data=replace(data, source=str(copy))))
