"""Row "going on with other data": what weights depend on is compared when a run is gone on with.

Single cases are in tests/pipelines/test_claim.py; here several things happen at once, drawn from a seed.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import tokenizer_run, write_pictures

from codegrid.pipelines.system.files import OutputError
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer import VQModel


def new_picture(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)


def add(folder: Path, draw: random.Random) -> None:
    for number in range(draw.randint(1, 3)):
        new_picture(folder / "cat" / f"new{number}.png", number)


def add_a_class(folder: Path, draw: random.Random) -> None:
    (folder / "owl").mkdir()
    new_picture(folder / "owl" / "0.png", draw.randint(0, 99))


def take(folder: Path, draw: random.Random) -> None:
    draw.choice(sorted(folder.rglob("*.png"))).unlink()


def exchange(folder: Path, draw: random.Random) -> None:
    """One picture becomes another of the same name."""
    new_picture(draw.choice(sorted(folder.rglob("0*.png"))), 77)


def move(folder: Path, draw: random.Random) -> None:
    """A picture changes its class."""
    (folder / "cat" / "000.png").rename(folder / "dog" / "zzz.png")


GROWS, CHANGES = (add, add_a_class), (take, exchange, move)


@pytest.mark.parametrize(
    "happens",
    [(add, add_a_class), (add_a_class, take), (add, move), 1, 4],
    ids=lambda one: one if isinstance(one, int) else "-".join(each.__name__ for each in one),
)
def test_grown_is_said_and_other_is_refused(happens, tmp_path, capsys):
    draw = random.Random(happens if isinstance(happens, int) else 0)
    if isinstance(happens, int):
        happens = tuple(draw.sample([*GROWS, *CHANGES], 2))
    pictures = write_pictures(tmp_path / "pictures")
    config = tokenizer_run(tmp_path / "run", pictures, save_every=1)
    train_tokenizer(config)
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    for change in sorted(happens, key=lambda one: one is not take):
        change(pictures, draw)
    capsys.readouterr()
    again = replace(config, max_steps=3)
    if set(happens) <= set(GROWS):
        train_tokenizer(again)
        assert "The data has grown since the run began" in capsys.readouterr().out, happens
        return
    with pytest.raises(OutputError, match=r"was trained on .*12 images.*are gone or changed"):
        train_tokenizer(again)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights, happens


def test_classes_are_a_part_of_what_a_conditional_run_was_made_from(tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    config = tokenizer_run(tmp_path / "run", pictures, save_every=1, class_conditional=True)
    train_tokenizer(config)
    add_a_class(pictures, random.Random(0))
    with pytest.raises(OutputError, match=r"classes was \['cat', 'dog'\], is \['cat', 'dog', 'owl'\]"):
        train_tokenizer(config)


@pytest.mark.parametrize("seed", [11])
def test_the_tokenizer_that_training_starts_from_is_compared(seed, tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    start = train_tokenizer(tokenizer_run(tmp_path / "start", pictures))
    config = tokenizer_run(tmp_path / "run", pictures, save_every=1, init_from=str(start))
    train_tokenizer(config)
    VQModel(replace_seed(start, seed)).save_pretrained(start)
    with pytest.raises(OutputError, match="init_from was"):
        train_tokenizer(config)


def replace_seed(start: Path, seed: int):
    torch.manual_seed(seed)
    return VQModel.from_pretrained(start).config
