"""pipelines/training/look.py: what is read, what presets make of it, the sheet."""

import numpy as np
import pytest
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.commands import main
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.training.look import LookConfig, look
from codegrid.pipelines.training.tokenizer.presets import TOKENIZER_PRESETS


@pytest.fixture
def mixed(tmp_path):
    """Two classes of colour pictures of four sizes, a strip and a file that is no picture."""
    for index, size in enumerate([(300, 280), (100, 90), (40, 30), (400, 10)]):
        for kind in "ab":
            (tmp_path / "in" / kind).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (250, 10 * index, 10)).save(tmp_path / "in" / kind / f"{index}.png")
    (tmp_path / "in" / "a" / "0bad.png").write_bytes(b"no picture")
    return tmp_path / "in"


def test_all_presets(mixed, tmp_path, capsys):
    look(LookConfig(DataConfig(str(mixed)), preset=None, output=str(tmp_path / "s" / "sheet.png")))
    out = capsys.readouterr().out
    assert "Labels: names of the subfolders, 2 classes: 0 a (5), 1 b (4)." in out
    assert "Sizes of 9 pictures: the short side from 10 to 280 pixels, half of them below 91; 1 cannot be read." in out
    for name in TOKENIZER_PRESETS:
        assert f"\n{name}: " in out
    line = next(line for line in out.splitlines() if line.startswith("vqgan-128: "))
    assert "codes an image" in line
    assert "2 of 8 left out (extreme aspect)" in line
    sheet = np.asarray(Image.open(tmp_path / "s" / "sheet.png"))
    assert sheet.ndim == 3


def test_the_command_line(mixed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("look.png", "look-2.png"):
        main(["look", str(mixed), "--preset", "quickstart", "--data.limit", "6"])
        assert (tmp_path / name).is_file()
    out = capsys.readouterr().out
    assert "Of these: 6." in out
    assert "small64:" not in out


def test_what_cannot_be_looked_at(tmp_path):
    Image.new("RGB", (4, 100)).save(tmp_path / "1.png")
    with pytest.raises(CodegridError, match=r"can use none of the first 1 pictures \(1 extreme aspect\)"):
        look(LookConfig(DataConfig(str(tmp_path)), output=str(tmp_path / "sheet.png")))
    with pytest.raises(CodegridError, match=r"preset is 'small'\. It must be one of quickstart"):
        LookConfig(DataConfig("x"), preset="small")
    with pytest.raises(CodegridError, match="num_pictures is 0"):
        LookConfig(DataConfig("x"), num_pictures=0)
