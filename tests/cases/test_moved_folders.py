"""Row "a command that failed", the part on folders: a project that was moved or copied goes on; other data at its place
does not.

Runs on copied pictures: tests/pipelines/test_claim.py; growing code data sets: tests/pipelines/test_tokenization.py.
"""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.system.files import OutputError
from codegrid.prior.codes import open_codes


def project(folder: Path, tokenizer, number: int, seed: int) -> Path:
    """A folder with pictures, a tokenizer and codes of the pictures, as `quickstart` leaves one."""
    rng = np.random.default_rng(seed)
    for index in range(number):
        path = folder / "images" / f"c{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    tokenizer.save_pretrained(folder / "tokenizer")
    tokenize(folder)
    return folder


def tokenize(folder: Path) -> bytes:
    config = TokenizationConfig(
        str(folder / "tokenizer"), DataConfig(str(folder / "images")), str(folder / "codes"), images_per_shard=4
    )
    return open_codes(tokenize_dataset(config)).codes(np.arange(1)).tobytes()


def moved(folder: Path, target: Path) -> Path:
    return folder.rename(target)


def copied(folder: Path, target: Path) -> Path:
    """`cp -r`: the files' times are those of copying."""
    shutil.copytree(folder, target, copy_function=shutil.copyfile)
    for number, path in enumerate(sorted(target.rglob("*.png"))):
        os.utime(path, ns=(number, 10**18 + number))
    return target


def copied_with_times(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def interrupted(folder: Path) -> None:
    (folder / "codes" / "manifest.json").unlink()
    (folder / "codes" / ".shards" / "00001.json").unlink()


@pytest.mark.parametrize("how", [moved, copied, copied_with_times])
@pytest.mark.parametrize("finished", [True, False])
def test_written_ways_to_move_a_project(tiny_vqmodel, tmp_path, how, finished, capsys):
    folder = project(tmp_path / "before", tiny_vqmodel, 10, 0)
    first = open_codes(folder / "codes").codes(np.arange(10)).tolist()
    if not finished:
        interrupted(folder)
    target = how(folder, tmp_path / "after")
    tokenize(target)
    assert open_codes(target / "codes").codes(np.arange(10)).tolist() == first
    tokenize(target)
    assert "is finished already" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [5, 55])
def test_drawn_other_pictures_at_the_same_place_are_refused(tiny_vqmodel, tmp_path, seed):
    draw = random.Random(seed)
    folder = project(tmp_path / "before", tiny_vqmodel, draw.randrange(6, 12), seed)
    target = draw.choice([moved, copied])(folder, tmp_path / "after")
    before = {path: path.read_bytes() for path in (target / "codes").rglob("*") if path.is_file()}
    victim = draw.choice(sorted((target / "images").rglob("*.png")))
    stat = victim.stat()
    data = bytearray(victim.read_bytes())
    data[draw.randrange(60, len(data))] ^= 1  # of the same size
    victim.write_bytes(data)
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(OutputError, match="holds codes of another job") as raised:
        tokenize(target)
    assert raised.value.remedy, seed
    after = {path: path.read_bytes() for path in before}
    assert after == before, (seed, victim)
