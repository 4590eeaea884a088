"""`codegrid` as a command line: what its help says, how little it loads for it, and what it says of mistakes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import codegrid
from codegrid.pipelines.commands import main
from codegrid.pipelines.commands.standins import HEAVY, stand_ins
from codegrid.pipelines.commands.table import COMMANDS, Functions, Preset, load

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TYPES = ["--quantizer.type residual --quantizer.inner.type fsq", "--objective.discriminator.type dino"]


def help_texts() -> dict[str, str]:
    """Every help text by its command line, and some where a part of another type is chosen."""
    lines = [f"train-tokenizer small64 {types}" for types in TYPES]
    for name, command in COMMANDS.items():
        words = ()
        if isinstance(command.parsed, Preset):
            words = load(command.parsed.presets)
        elif isinstance(command.parsed, Functions):
            words = command.parsed.loaded()
        lines += [name, *(f"{name} {word}" for word in words)]
    texts = {}
    for line in lines:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as end:
            main([*line.split(), "--help"])
        assert end.value.code == 0
        texts[line] = shown.getvalue()
    return texts


@pytest.fixture(scope="module")
def real_texts() -> dict[str, str]:
    """The help texts by the real libraries, in lines of 100 characters."""
    assert torch.nn.Module.__module__.startswith("torch.")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        return help_texts()


WITH_STAND_INS = """
import json, runpy, sys
from codegrid.pipelines.commands.standins import HEAVY, stand_ins
with stand_ins():
    texts = runpy.run_path(sys.argv[1], run_name="with_stand_ins")["help_texts"]()
left = sorted(name for name in sys.modules if name.partition(".")[0] in {*HEAVY, "codegrid"})
print(json.dumps([texts, left]))
"""


def test_help_texts_by_stand_ins_are_those_by_the_libraries(real_texts: dict[str, str]) -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    result = subprocess.run(
        [sys.executable, "-c", WITH_STAND_INS, __file__], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    texts, left = json.loads(result.stdout)
    assert texts == real_texts
    known = {"codegrid", "codegrid.errors", "codegrid.pipelines"}
    assert not [name for name in left if name not in known and "codegrid.pipelines.commands" not in name]


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        ("--help", 1),
        ("dev --help", 1),
        ("--version", 1),
        ("train-tokenizer --help", 2),
        ("train-tokenizer small64 --help", 2),
        ("train-tokenizer small64 --quantizer.type fsq --help", 2),
        ("train-prior quickstart --help", 2),
        ("generate --help", 2),
        ("evaluate generation --help", 2),
        ("quickstart --help", 2),
    ],
)
def test_help_loads_no_heavy_library(line: str, seconds: float) -> None:
    code = "import sys\nfrom codegrid.pipelines.commands import main\ntry:\n    main()\nfinally:\n"
    code += "    print(*sys.modules, file=sys.stderr)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, result.stderr
    assert result.stdout
    assert not {name.partition(".")[0] for name in result.stderr.split()} & HEAVY
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < seconds  # of CPU


@pytest.mark.parametrize(
    ("target", "unneeded"),
    [
        ("system.console:guarded", {"torch", "transformers", "datasets"}),
        ("generation.to_folder:generate_images", {"datasets", "torchmetrics"}),
        ("generation.make:make_pipeline", {"datasets", "torchmetrics"}),
    ],
)
def test_a_command_loads_what_it_needs(target: str, unneeded: set[str]) -> None:
    code = f"import sys\nfrom codegrid.pipelines.commands.table import load\nload({target!r})\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not set(result.stdout.split()) & unneeded


def test_no_stand_in_where_a_library_is_loaded() -> None:
    with stand_ins():
        import torchvision

        assert Path(torchvision.__file__).exists()


def options(text: str) -> list[tuple[str, str]]:
    """The options and positional arguments of a help text, each with all that is said of it."""
    found, inside = [], False
    for line in text.splitlines():
        if re.fullmatch(r" (.*options|positional arguments) *", line):
            inside = True
        elif not line.strip() or not inside:
            inside = False
        elif re.match(r"  (-|\{?[A-Z]{2})", line):
            found.append(line.strip())
        elif found and re.match(r"   ", line):
            found[-1] += "  " + line.strip()
    pairs = [(option, said.replace("  ", " ")) for option, _, said in (line.partition("  ") for line in found)]
    return [(option, said.strip()) for option, said in pairs if not re.match("-+$|-h", option)]


def test_every_option_has_its_sentence_and_its_default(real_texts: dict[str, str]) -> None:
    number, silent = 0, []
    for line, text in real_texts.items():
        for option, said in options(text):
            sentence = re.sub(r"\((default: .*|required)\)$", "", said).strip()
            number += 1
            if sentence == said or len(sentence) < 8 or not re.search(r"[.)]$", sentence):
                silent.append(f"{line}: {option}: {said}")
    assert number > 500
    assert not silent


def test_a_docstring_is_said_once_and_without_its_sections(real_texts: dict[str, str]) -> None:
    for line, text in real_texts.items():
        assert not re.search(r"^\s*(Args|Raises|Returns):", text, re.MULTILINE), line
        assert text.startswith(f"usage: codegrid {line.split(' --')[0]} "), line


def test_a_type_names_those_that_there_are(real_texts: dict[str, str]) -> None:
    said = dict(options(real_texts[f"train-tokenizer small64 {TYPES[0]}"]))
    assert said["--quantizer.type {residual}"].startswith("one of vq, simvq, ibq,")
    assert "hierarchical" in said["--quantizer.type {residual}"]
    assert said["--quantizer.inner.type {fsq}"] == "one of vq, simvq, fsq, lfq. (default: fsq)"  # those that fit
    assert said["--objective.discriminator.type {patchgan}"].startswith("one of patchgan, stylegan, dino.")


def test_every_script_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert {name.split()[-1] for name in COMMANDS} == {path.stem.replace("_", "-") for path in SCRIPTS.glob("*.py")}
    for line in ([], ["--help"]):
        main(line)
        shown = capsys.readouterr().out
        for name, command in COMMANDS.items():
            assert (f"  {name} " in shown and command.summary in shown) == (not name.startswith("dev "))
    main(["dev"])
    shown = capsys.readouterr().out
    assert all(name.removeprefix("dev ") in shown for name in COMMANDS if name.startswith("dev "))
    main(["--version"])
    assert capsys.readouterr().out == f"codegrid {codegrid.__version__}\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train-tokeniser small64", "Did you mean 'train-tokenizer'?"),
        ("dev benchmrk", "Did you mean 'dev benchmark'?"),
        ("--hlep", "Did you mean '--help'?"),
        ("train-tokenizer smal64", "Did you mean 'small64'?"),
        ("train-tokenizer", "needs a preset first: quickstart, small64"),
        ("train-tokenizer --max-steps 3", "needs a preset first: quickstart, small64"),
        ("evaluate reconstructoin", "Did you mean 'reconstruction'?"),
        ("train-prior quickstart --codes C --output-dir O --max-stpes 3", "--max-stpes: did you mean --max-steps?"),
        ("train-prior quickstart --codes C --output_dir O --max-stpes=3", "--max-stpes: did you mean --max-steps?"),
        ("generate --pipline P", "--pipline: did you mean --pipeline?"),
        ("generate --pipeline P --zzz 1", "--zzz is no option of `codegrid generate`; `codegrid generate --help`"),
    ],
)
def test_a_mistyped_word_names_the_nearest(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert end.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tokenize-dataset --tokenizer T --data.source S --output-dir O --batch-size 0", "batch_size is 0: it must"),
        ("train-tokenizer small64 --data.source S --output-dir O --max-steps 0", "max_steps is 0: it must"),
        ("dev benchmark codes-reading --repeats 0", "repeats is 0: it must"),
    ],
)
def test_a_value_that_a_command_refuses_is_one_sentence(line: str, said: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert end.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {said}")
    assert printed.err.count("\n") == 1


def test_both_spellings_of_a_name_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train-prior", "quickstart", "--codes", "missing", "--output_dir", "out", "--max_steps", "x"])
    assert "did you mean" not in capsys.readouterr().err
