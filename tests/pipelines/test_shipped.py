"""The pipeline that comes with the package: it loads by its name, and its codes decode to the stored pictures."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.loading import LoadingError, load_prior_and_sequence, load_tokenizer
from codegrid.pipelines.artifacts.shipped import EXPECTED_NAME, SHIPPED, shipped_folder
from codegrid.pipelines.data.sources import EMBEDDED_IMAGES
from codegrid.pipelines.generation.to_folder import generate_images
from codegrid.tokenizer.images import to_uint8


@pytest.fixture(autouse=True)
def no_connection(monkeypatch):
    """Nothing of this asks the Hub."""
    monkeypatch.setattr("codegrid.pipelines.artifacts.loading.snapshot", None)


@pytest.mark.parametrize("name", SHIPPED)
def test_stored_codes_decode_to_the_stored_pictures(name):
    pipe = ImageGenerationPipeline.from_pretrained(name)
    with np.load(shipped_folder(name, "pipeline") / EXPECTED_NAME, allow_pickle=False) as stored:
        codes, pictures = torch.from_numpy(stored["codes"].astype(np.int64)), stored["pictures"]
    assert len(codes) == len(pictures) >= 10
    assert pictures.std() > 20
    made = to_uint8(pipe.decode(codes)).numpy()
    assert np.abs(made.astype(np.int64) - pictures).max() <= 1


def test_its_samples_are_of_the_classes_asked_for(tmp_path):
    folder = generate_images("fashion-mnist", str(tmp_path / "samples"), class_labels=("Bag", "Trouser"), num_images=4)
    record = json.loads((folder / "generation.json").read_text())
    assert record["pipeline"] == "fashion-mnist"
    assert len(list(folder.glob("00000*.png"))) == 4


def test_its_parts_load_by_the_same_name_and_belong_together():
    tokenizer = load_tokenizer("fashion-mnist")
    prior, sequence = load_prior_and_sequence("fashion-mnist")
    assert sequence.tokenizer_fingerprint == tokenizer.codes_fingerprint()
    assert (tokenizer.dtype, prior.dtype) == (torch.float32, torch.float32)
    assert load_tokenizer("fashion-mnist", subfolder="tokenizer").fingerprint() == tokenizer.fingerprint()
    assert all(torch.equal(weight, weight.half().float()) for weight in prior.parameters())


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fashion-mnist").mkdir()
    with pytest.raises(LoadingError):
        ImageGenerationPipeline.from_pretrained("fashion-mnist")


def test_the_card_says_how_it_was_made_and_what_licence_it_has():
    folder = shipped_folder("fashion-mnist", "pipeline")
    card = (folder / "README.md").read_text()
    for words in ("codegrid quickstart", "PSNR", "MIT", "Zalando", "arXiv:1708.07747"):
        assert words in card
    notice = EMBEDDED_IMAGES.with_name("FASHION_MNIST_LICENSE.txt").read_text()
    assert (folder / "LICENSE").read_text() == notice
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 10_000_000
    for page in folder.rglob("README.md"):
        assert not re.search(r"`/", page.read_text()), page  # no places of the machine that made it
