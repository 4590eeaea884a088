"""Every command with bad input: one sentence with a remedy, no traceback, no folder left behind.

The generator crosses every option that a command reads a file or folder from with kinds of things that cannot be read
there. (tests/test_commands.py has mistakes of meaning, tests/pipelines/test_command_line.py those of the command line
itself, tests/faults/ disks that are full.)
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from codegrid.names import shown
from codegrid.pipelines.commands import main
from codegrid.pipelines.commands.table import COMMANDS
from codegrid.pipelines.data.sources import EMBEDDED_IMAGES
from codegrid.tokenizer.feature_nets.efficientnet_lite import EfficientNetLite0

SAVED = Path(__file__).resolve().parents[1] / "saved_by_be0a219"
TINY = ["--max-steps", "1", "--batch-size", "2", "--preprocessing.image-size", "16", "--backbone.ch", "8"]
TINY += ["--backbone.norm-groups", "4", "--backbone.z-channels", "8", "--tracking"]
LITE = ["--feature-net", "efficientnet_lite0", "--num-images", "10"]
OUT = ["--output-dir", "OUT"]


class Reads(NamedTuple):
    """A command line whose options read things of these kinds."""

    line: list[str]
    kinds: dict[str, str]
    others: Sequence[str] = ()


CASES = [
    Reads(["look"], {"--data.source": "images"}),
    Reads(["train-tokenizer", "quickstart"], {"--data.source": "images"}, [*OUT, *TINY]),
    Reads(
        ["train-tokenizer", "quickstart"],
        {"--init-from": "tokenizer", "--data.source": "images"},
        [*OUT, "--max-steps", "1"],
    ),
    Reads(
        ["train-tokenizer", "quickstart"],
        {"--disturbance.prior": "prior"},
        [*OUT, "--finetune-decoder", "--init-from", "tokenizer", "--data.source", "images", "--max-steps", "1"],
    ),
    Reads(["reconstruct"], {"--tokenizer": "tokenizer", "--data.source": "images"}, OUT),
    Reads(["tokenize-dataset"], {"--tokenizer": "tokenizer", "--data.source": "images"}, OUT),
    Reads(["import-codes"], {"--source": "images"}, [*OUT, "--made-by", "bytes", "--codebook-size", "1"]),
    Reads(["verify-codes"], {"--codes": "codes", "--tokenizer": "tokenizer", "--source": "images"}),
    Reads(["train-prior", "quickstart"], {"--codes": "codes"}, [*OUT, "--max-steps", "1"]),
    Reads(["train-prior", "quickstart"], {"--init-from": "prior", "--codes": "codes"}, [*OUT, "--max-steps", "1"]),
    Reads(["make-pipeline"], {"--tokenizer": "tokenizer", "--prior": "prior"}, OUT),
    Reads(["generate"], {"--pipeline": "pipeline"}, [*OUT, "--num-images", "1"]),
    Reads(["edit"], {"--pipeline": "pipeline"}, [*OUT, "--image", "picture.png", "--keep", "0.5"]),
    Reads(
        ["evaluate", "reconstruction"],
        {"--tokenizer": "tokenizer", "--data.source": "images"},
        [*OUT, "--lpips", "none", "--feature-net", "none"],
    ),
    Reads(["evaluate", "generation"], {"--pipeline": "pipeline", "--reference": "images"}, [*OUT, *LITE]),
    Reads(
        ["evaluate", "classification"], {"--pipeline": "pipeline", "--data.source": "images", "--codes": "codes"}, OUT
    ),
    Reads(["compress"], {"--pipeline": "pipeline", "--data.source": "images"}, [*OUT, "--model", "fixed"]),
    Reads(["decompress"], {"--files": "archive.cga", "--pipeline": "pipeline"}, OUT),
    Reads(["codec-info"], {"--file": "archive.cga"}),
    Reads(["report"], {"": "run"}),
    Reads(["demo"], {"--pipeline": "pipeline"}),
    Reads(["push-to-hub"], {"--folder": "model"}, ["--repo-id", "user/name"]),
    Reads(["import-checkpoint", "taming"], {"--checkpoint": "checkpoint"}, OUT),
    Reads(["export-diffusers"], {"--tokenizer": "tokenizer"}, OUT),
    Reads(["export-onnx"], {"--tokenizer": "tokenizer"}, OUT),
    Reads(["quickstart"], {"--test-data": "images"}, OUT),
    Reads(["dev", "write-comparison"], {"--comparison": "comparison"}),
    Reads(["dev", "search-recipe"], {"--data.source": "images"}, [*OUT, "--candidates", "batch_size=2"]),
]
# Commands that read no file of the user's, whose reading is a program of another project, or that make the package.
WITHOUT = {"dev benchmark", "dev compare-quantizers", "dev import-parity", "dev ship-pipeline"}


def missing(folder: Path, kind: str) -> str:
    return "not/there"


def a_file(folder: Path, kind: str) -> str:
    (folder / "a file.txt").write_text("no picture and no model")
    return "a file.txt"


def an_empty_folder(folder: Path, kind: str) -> str:
    (folder / "empty").mkdir()
    return "empty"


def another_kind(folder: Path, kind: str) -> str:
    """A folder of this project, where one of another kind is asked for."""
    others = {"images": "codes", "tokenizer": "prior", "prior": "codes", "pipeline": "tokenizer"}
    return others.get(kind, "images" if kind != "checkpoint" else "samples")


def a_loop_of_links(folder: Path, kind: str) -> str:
    """What nobody can read, not even root."""
    (folder / "loop").symlink_to("loop")
    return "loop"


def a_name_that_is_too_long(folder: Path, kind: str) -> str:
    return "n" * 300


def half_a_folder(folder: Path, kind: str) -> str:
    """Of a model or data set: its JSON cut short. Of images: a table cut short."""
    if kind in ("images", "checkpoint", "comparison", "archive.cga"):
        (folder / "half").mkdir()
        (folder / "half" / "part.parquet").write_bytes(b"PAR1 and no more")
        return "half"
    shutil.copytree(folder / kind, folder / "half")
    for file in (folder / "half").glob("*.json"):
        file.write_text(file.read_text()[:20])
    return "half"


KINDS = [missing, a_file, an_empty_folder, another_kind, a_loop_of_links, a_name_that_is_too_long, half_a_folder]


def drawn_name(seed: int) -> str:
    draw = random.Random(seed)
    letters = "abc é猫\n\t%s{}~'\"\\$*?[]:;\u202e\udcff"
    return "".join(draw.choice(letters) for _ in range(12)).strip("/") + "x"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of torch hub's downloads with a feature net of random weights."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "checkpoints").mkdir()
    save_file(EfficientNetLite0().state_dict(), folder / "checkpoints" / "efficientnet_lite0.safetensors")
    return folder


@pytest.fixture
def prepared(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """`prepared(folder)`: make a working folder with one of each thing, and go there."""

    def work(*arguments: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("codegrid.pipelines.quickstart.train_tokenizer", work)  # minutes
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(hub))
    monkeypatch.setenv("CODEGRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")  # without a login push-to-hub looks at nothing else

    def prepare(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for name in ("images", "tokenizer", "codes", "prior", "pipeline", "samples"):
            shutil.copytree(SAVED / name, folder / name)
        (folder / "archive.cga").write_bytes(b"no archive")
        for name in ("run", "model"):
            shutil.copytree(SAVED / "tokenizer", folder / name)
        monkeypatch.chdir(folder)

    return prepare


@pytest.fixture
def folder(tmp_path: Path, prepared: Callable[[Path], None]) -> Path:
    prepared(tmp_path / "work")
    return tmp_path / "work"


def command_line(case: Reads, option: str, value: str) -> list[str]:
    words = list(case.line)
    for name, kind in case.kinds.items():
        words += [name] if name else []
        words.append(value if name == option else kind)
    return [*words, *case.others]


def check_refused(words: list[str], value: str | None, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(SystemExit) as end:
        main(words)
    errors = capsys.readouterr().err
    context = f"{words}:\n{errors}"
    assert end.value.code in (1, 2), context
    assert "Traceback" not in errors, context
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, context
    assert errors.rstrip().endswith(lines[0]), context  # one line, the last
    assert len(lines[0]) < 1000, context
    if value is not None:
        assert value in lines[0] or shown(value) in lines[0] or repr(value) in lines[0], context
    assert sorted(folder.iterdir()) == before, context


EACH = [(case, option, kind) for case in CASES for option, kind in case.kinds.items()]


def drawn(seed: int) -> list[tuple[Reads, str, str, Callable[[Path, str], str]]]:
    """Two kinds of bad input for every option; each kind meets about a quarter of the options."""
    draw, found = random.Random(seed), []
    kinds = draw.sample(KINDS, len(KINDS))
    for place, (case, option, kind) in enumerate(draw.sample(EACH, len(EACH))):
        found += [(case, option, kind, kinds[(place + step) % len(kinds)]) for step in (0, 3)]
    return found


@pytest.mark.parametrize("seed", [20261126])
def test_what_cannot_be_read_is_refused(
    seed: int, tmp_path: Path, prepared: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for place, (case, option, kind, bad) in enumerate(drawn(seed)):
        folder = tmp_path / str(place)
        prepared(folder)
        value = bad(folder, kind)
        print(f"seed {seed}, {place}: {bad.__name__}")
        named = value[:40] if case.line != ["demo"] else None  # which says that Gradio is missing, where it is
        check_refused(command_line(case, option, value), named, folder, capsys)


@pytest.mark.parametrize("seed", [20261126])
def test_what_is_drawn_is_refused(seed: int, folder: Path, capsys) -> None:
    """Names of any characters, for any option of any command, that nothing has."""
    draw = random.Random(seed)
    for place in range(12):
        case, option, _ = draw.choice(EACH)
        name = drawn_name(draw.randrange(1 << 32))
        print(f"seed {seed}, {place}: {name!r}")
        check_refused(command_line(case, option, name), None, folder, capsys)


WRITES = [case for case in CASES if OUT[0] in case.others]


@pytest.mark.parametrize("case", WRITES, ids=lambda case: " ".join([*case.line, *case.kinds]))
def test_an_output_folder_that_cannot_be_is_refused(case: Reads, folder: Path, capsys) -> None:
    """A file, below a file, what nobody can write, inside of the pictures that are read, and an empty name."""
    (folder / "a file").write_text("mine")
    (folder / "loop").symlink_to("loop")
    inside = ["images/out"] * ("images" in case.kinds.values())
    for output in ["a file", "a file/out", "loop", "", *inside]:
        words = [output if word == "OUT" else word for word in command_line(case, "none", "")]
        check_refused(words, output or None, folder, capsys)
        assert (folder / "a file").read_text() == "mine"
        assert not (folder / "images" / "out").exists()


def test_every_command_is_here() -> None:
    here = {" ".join(case.line[: 1 + (case.line[0] == "dev")]) for case in CASES}
    assert here | WITHOUT == set(COMMANDS)


def test_a_folder_that_is_gone_is_not_read_from_a_cache(folder: Path, capsys) -> None:
    """`datasets` keeps what it has read by a folder's base name, and without a connection takes a bare name for it."""
    (folder / "elsewhere" / "pets").mkdir(parents=True)
    table = pq.read_table(EMBEDDED_IMAGES).slice(0, 5)
    pq.write_table(table, folder / "elsewhere" / "pets" / "train.parquet")
    assert len(datasets.load_dataset("elsewhere/pets", split="train")) == 5
    check_refused(["look", "pets"], "pets", folder, capsys)
