"""docs/quantizers.md lists every quantizer; each row is what the command line makes of its options."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from codegrid.pipelines.commands import main
from codegrid.pipelines.comparison.report import BEGIN, END, marks
from codegrid.pipelines.comparison.twins import TWINS, compared
from codegrid.pipelines.comparison.variants import VARIANTS
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.tokenizer import train
from codegrid.pipelines.training.tokenizer.presets import small64_tokenizer
from codegrid.tokenizer import VQModel, VQModelConfig
from codegrid.tokenizer.quantizers import QUANTIZERS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "quantizers.md").read_text(encoding="utf-8")
# Name -> (options, bits, arXiv number).
ROW = r"^\| `([\w-]+)` \| (.*?) \| (\d+) \| [^|]+ \| \[([\d.]+)\]\(https://arxiv\.org/abs/\4\) \|$"
ROWS = {name: rest for name, *rest in re.findall(ROW, PAGE, re.M)}


def arguments(name: str) -> list[str]:
    """What stands in backticks: the options, or another row's name for its options."""
    parts = re.findall(r"`([^`]+)`", ROWS[name][0])
    return [word for part in parts for word in (arguments(part) if part in ROWS else part.split())]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch):
    """`parse(words)`: the config of small64 with these options, as `codegrid train-tokenizer` reads them."""

    def parsed(words: list[str]) -> TokenizerTrainingConfig:
        found: list[TokenizerTrainingConfig] = []
        monkeypatch.setattr(train, "train_tokenizer", found.append)
        main(["train-tokenizer", "small64", "--data.source", "x", "--output-dir", "x", *words])
        return found[0]

    return parsed


def test_the_table_is_the_registry():
    assert set(ROWS) == set(VARIANTS)
    assert {config.type for config in VARIANTS.values()} == set(QUANTIZERS)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_options_of_a_row_give_what_is_compared(name, parse):
    assert parse(arguments(name)).quantizer == VARIANTS[name]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_bits_of_a_row_are_those_of_an_images_codes(name):
    config = small64_tokenizer("x", "x")
    model = VQModel(VQModelConfig(backbone=config.backbone, quantizer=VARIANTS[name])).eval()
    codes = model.encode(torch.rand(1, 3, 64, 64) * 2 - 1)
    assert int(ROWS[name][1]) == round(codes.numel() * math.log2(VARIANTS[name].codebook_size))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_paper_of_a_row_is_one_that_the_code_names(name):
    sources = (ROOT / "tokenizer" / "quantizers").glob("*.py")
    assert any(ROWS[name][2] in path.read_text(encoding="utf-8") for path in sources)


def test_the_page_has_a_place_for_the_comparison():
    assert PAGE.count(BEGIN) == PAGE.count(END) == 1


def test_the_settings_of_theirs_are_all_there():
    found = re.findall(r"^\| `([\w-]+)` \| `(\w+)` \| `(\{.*?\})` \| [^|]+ \|$", PAGE, re.M)
    assert found == [(name, config.module, config.arguments) for name, config in TWINS.items()]


def test_the_table_beside_theirs_has_every_row_and_so_each_with_its_twin():
    begin, end = marks("beside")
    rows = re.findall(r"^\| `([\w-]+)` \| [\d.]+ \| [\d.]+ \|", PAGE.split(begin)[1].split(end)[0], re.M)
    assert rows == list(compared())
