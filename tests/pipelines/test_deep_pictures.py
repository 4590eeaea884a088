"""Twelve bits in files of sixteen, through training and tokenizing."""

from __future__ import annotations

import numpy as np
from PIL import Image

from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer.images import Preprocessing


def test_training_and_tokenizing_say_it_once_and_a_white_point_mends_it(tokenizer_config, tmp_path, capsys):
    random, folder = np.random.default_rng(0), tmp_path / "pictures"
    folder.mkdir()
    for index in range(10):
        values = random.integers(0, 4096, (20, 24)).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{index}.png")
    data = DataConfig(str(folder), validation_fraction=0.2)
    advice = "the model sees 17 of 256 levels. If white is another value in them, train the tokenizer with"
    run = train_tokenizer(tokenizer_config(tmp_path / "dark", data=data, max_steps=5, log_every=1))
    said = capsys.readouterr()
    assert (said.out + said.err).count(f"{advice} --preprocessing.white 4095.") == 1
    tokenize_dataset(TokenizationConfig(str(run), DataConfig(str(folder)), str(tmp_path / "codes"), device="cpu"))
    said = capsys.readouterr()
    assert (said.out + said.err).count("All 10 pictures of more than 8 bits so far stay below 6% of white") == 1

    bright = Preprocessing(image_size=16, white=4095)
    run = train_tokenizer(tokenizer_config(tmp_path / "bright", data=data, preprocessing=bright))
    tokenize_dataset(TokenizationConfig(str(run), DataConfig(str(folder)), str(tmp_path / "codes2"), device="cpu"))
    said = capsys.readouterr()
    assert "of white" not in said.out + said.err
    assert load_tokenizer(run).config.preprocessing_config == bright
