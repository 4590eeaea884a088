"""Row "class names that are numbers": which id is which class is said, wherever ids and names differ."""

import io
import random
from pathlib import Path

import pytest
from PIL import Image

from codegrid.pipelines.artifacts.cards import codes_card
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.data.understood import describe_source
from codegrid.prior.codes import read_manifest

BUFFER = io.BytesIO()
Image.new("RGB", (24, 24), (90, 10, 200)).save(BUFFER, "PNG")


def folders(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "p.png").write_bytes(BUFFER.getvalue())
    return root


def notes(names: list[str], root: Path) -> tuple[list[str], list[str]]:
    source = open_images(DataConfig(str(folders(root, names)), top_folders="classes"))
    return source.class_names, [line for line in describe_source(source) if "names are numbers" in line]


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["0", "1", "2", "10"], "id 2 is class '10'"),
        (["1", "2", "3"], "id 0 is class '1'"),
        (["0", "1", "2"], ""),
        (["007", "42"], "id 0 is class '007'"),
    ],
)
def test_written_names(tmp_path, names, note):
    found, said = notes(names, tmp_path)
    assert found == sorted(names)
    assert len(said) == bool(note)
    assert not note or note in said[0]


@pytest.mark.parametrize("seed", [1, 12, 123])
def test_drawn_names(tmp_path, seed):
    """Said exactly where an id is not the number that its class is called."""
    draw = random.Random(seed)
    for number in range(6):
        names = [str(value) for value in draw.sample(range(draw.choice([3, 9, 14, 2000])), 3)]
        found, said = notes(names, tmp_path / str(number))
        differ = any(str(place) != name for place, name in enumerate(found))
        assert bool(said) == differ, f"seed {seed}: {names}"


def test_the_codes_card_says_it_too(tmp_path, tiny_vqmodel, capsys):
    root = folders(tmp_path / "pictures", ["0", "1", "2", "10"])
    tiny_vqmodel.save_pretrained(tmp_path / "tokenizer")
    data = DataConfig(str(root))
    codes = tokenize_dataset(
        TokenizationConfig(str(tmp_path / "tokenizer"), data, str(tmp_path / "codes"), device="cpu")
    )
    assert "id 2 is class '10'" in capsys.readouterr().out
    assert "id 2 is class '10'" in codes_card(read_manifest(codes))
