"""`codegrid` as a command line: what its help says, how little it loads for it, and what it says of mistakes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import resource
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import codegrid
from codegrid.pipelines.commands import main
from codegrid.pipelines.commands.mistakes import options_of
from codegrid.pipelines.commands.standins import HEAVY, stand_ins
from codegrid.pipelines.commands.table import COMMANDS, Command, Functions, Preset, load
from codegrid.pipelines.training.tokenizer.presets import TOKENIZER_PRESETS

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
    known = {"codegrid", "codegrid.errors", "codegrid.names", "codegrid.pipelines"}
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
    sentence = said["--quantizer.type {vq,simvq,ibq,gumbel,fsq,lfq,bsq,residual,grouped,hierarchical}"]
    assert sentence.startswith("one of these; `--quantizer.type NAME --help` lists the options of each. vq: Vector")
    assert "lfq: Lookup-free quantization (LFQ): the sign of each channel is a bit of the code. bsq: " in sentence
    assert sentence.endswith("(default: residual)")
    assert "(default: fsq)" in said["--quantizer.inner.type {vq,simvq,fsq,lfq}"]  # those that fit
    sentence = said["--objective.discriminator.type {patchgan,stylegan,dino}"]
    assert "patchgan: PatchGAN: one logit for each patch of the image. stylegan: " in sentence
    assert "https" not in sentence


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
        ("train-tokenizer", "needs a preset as its first word. There are quickstart, small64"),
        ("train-tokenizer --max-steps 3", "needs a preset as its first word. There are quickstart, small64"),
        ("train-tokenizer --max-steps 3 small64", "Write `codegrid train-tokenizer small64 ...`."),
        ("evaluate reconstructoin", "Did you mean 'reconstruction'?"),
        (
            "train-prior quickstart --codes C --output-dir O --max-stpes 3",
            "has no option --max-stpes. Did you mean --max-steps?",
        ),
        (
            "train-prior quickstart --codes C --output_dir O --max-stpes=3",
            "has no option --max-stpes. Did you mean --max-steps?",
        ),
        ("generate --pipline P", "`codegrid generate` has no option --pipline. Did you mean --pipeline?"),
        ("generate --pipeline P --zzz 1", "has no option --zzz. `codegrid generate --help` lists the options."),
        (
            "generate --pipeline P --output-dir O stray",
            "'stray' belongs to no option of `codegrid generate`. Write",
        ),
        ("generate --pipeline P --output-dir O --seed", "--seed has no value. It takes a whole number: "),
        ("generate --pipeline P --seed x --output-dir O", "--seed is 'x'. It takes a whole number: "),
        ("generate --output-dir O --pipeline", "--pipeline has no value. It takes a text: folder or Hub name"),
        ("generate --pipeline P", "`codegrid generate` needs --output-dir. Add it: "),
        ("generate", "`codegrid generate` needs --pipeline and --output-dir. Add them; `codegrid generate --help`"),
        ("report", "`codegrid report` needs a first word. Add it: folder of a training run"),
        ("report one two", "'two' belongs to no option of `codegrid report`."),
        ("train-prior small64 --device gpu", "--device is 'gpu'. It takes one of auto, cpu: "),
        ("train-prior small64 --mixed-precision bf61", "Did you mean bf16? It takes one of auto, no, bf16"),
        ("train-prior small64 --deterministic yes", "--deterministic takes no value, and 'yes' follows it. Write "),
        ("train-prior small64 --deterministic=yes", "--deterministic takes no value, and 'yes' follows it. Write "),
        ("train-prior small64 --tracking wandb tensorbord", "--tracking is 'wandb tensorbord'. It takes any number of"),
        ("train-tokenizer small64 --preprocessing.image-size 1 2 3", "'3' belongs to no option of `codegrid train"),
        ("train-tokenizer small64 --preprocessing.image-size wide", "It takes a whole number or a whole number and a"),
        ("train-tokenizer small64 --quantizer.type vqq", "quantizer.type is 'vqq'. It must be one of 'vq', 'simvq'"),
        ("train-tokenizer small64 --quantizer.type fsq --quantizer.codebook-size 8", "no option --quantizer.codebook-"),
        (
            "generate --pipeline P --output-dir O \u2014seed 3",
            "its dash is none of the keyboard. Write --seed.",
        ),
        ("generate --pipeline P --output-dir O -seed 3", "has no option -seed. Did you mean --seed?"),
        ("generate --pipeline P --output-dir O --seed = 3", "--seed is '='. It takes a whole number"),
        ("train_tokenizer small64", "Did you mean 'train-tokenizer'?"),
        ("help", "'help' is no command."),
        ("dev benchmark encode --repeats few", "--repeats is 'few'. It takes a whole number: "),
    ],
)
def test_a_wrong_command_line_is_a_sentence_and_a_remedy(line: str, said: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1


LOOKED_OVER = """
import contextlib, sys
from codegrid.pipelines.commands import main
with contextlib.suppress(SystemExit):
    main()
print(*sys.modules)
"""


@pytest.mark.parametrize(
    "line", ["generate --pipline P", "train-prior smal64", "verify-codes --codes C stray", "report --seed x"]
)
def test_a_wrong_command_line_loads_no_heavy_library(line: str) -> None:
    result = subprocess.run([sys.executable, "-c", LOOKED_OVER, *line.split()], capture_output=True, text=True)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not {name.partition(".")[0] for name in result.stdout.split()} & HEAVY


@pytest.mark.parametrize("seed", [20261126])
def test_any_option_with_a_value_of_another_kind_is_one_sentence(seed: int, capsys: pytest.CaptureFixture) -> None:
    """Drawn: commands, their options, and a word that none of their kinds but a text takes; also misspelt names."""
    draw = random.Random(seed)
    lines = [
        [name, *word]
        for name, command in COMMANDS.items()
        for word in ([[draw.choice(words)] for words in [_words(command)] if words] or [[]])
    ]
    for words in draw.sample(lines, 8):
        command, rest = COMMANDS[words[0]], words[1:]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", "100")
            with contextlib.suppress(SystemExit):
                main([*words[0].split(), *rest, "--help"])
        known = [option for option in options_of(capsys.readouterr().out) if option.names and option.names[0] != "-h"]
        option = draw.choice([option for option in known if "STR" not in option.kind] or known)
        takes_any = "STR" in option.kind  # so that only a misspelt name is wrong
        name = f"{option.names[-1]}{'q' if takes_any else draw.choice(['', 'q'])}"
        context = f"seed {seed}: {words} {name} (of {command.summary})"
        with pytest.raises(SystemExit) as end:
            main([*words[0].split(), *rest, name, "w_o_r_d"])
        printed = capsys.readouterr()
        assert end.value.code == 2, context
        assert printed.err.startswith("error: "), context
        assert printed.err.count("\n") == 1, context
        assert name in printed.err, context


def _words(command: Command) -> list[str]:
    if isinstance(command.parsed, Preset):
        return list(load(command.parsed.presets))
    return list(command.parsed.loaded()) if isinstance(command.parsed, Functions) else []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "tokenize-dataset --tokenizer T --data.source S --output-dir O --batch-size 0",
            "batch_size is 0. Give at",
        ),
        ("train-tokenizer small64 --data.source S --output-dir O --max-steps 0", "max_steps is 0. It must"),
        ("dev benchmark codes-reading --repeats 0", "repeats is 0. It must"),
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


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("verify-codes --codes missing --data.source S --data.split val", "missing is no finished code data set"),
        ("verify-codes --codes missing --source=S --split=val", "missing is no finished code data set"),
        ("look --source missing/folder --split test", "missing/folder is neither a file nor a folder here"),
        ("evaluate generation --pipeline missing --data.source S --output-dir O", "The pipeline 'missing'"),
        ("evaluate generation --pipeline missing --reference S --output-dir O", "The pipeline 'missing'"),
    ],
)
def test_pictures_may_be_named_as_in_other_commands(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert said in capsys.readouterr().err
    assert end.value.code == 1


def test_every_script_says_what_its_command_says(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for path in sorted(SCRIPTS.glob("*.py")):
        name = path.stem.replace("_", "-")
        line = [name] if name in COMMANDS else ["dev", name]
        said = []
        for start in (lambda path=path: runpy.run_path(str(path), run_name="__main__"), lambda line=line: main()):
            script = said == []
            monkeypatch.setattr(sys, "argv", [str(path), *([] if script else line), "--help"])
            with contextlib.suppress(SystemExit):
                start()
            said.append(capsys.readouterr().out)
        assert said[0] == said[1] != "", path
        assert len(path.read_text().splitlines()) <= 10, path


def test_a_preset_says_which_pictures_it_is_for_and_what_becomes_of_smaller_ones(real_texts: dict[str, str]) -> None:
    for name, preset in TOKENIZER_PRESETS.items():
        said = " ".join(real_texts[f"train-tokenizer {name}"].split())
        preprocessing = preset("IMAGES", "RUN").preprocessing
        colour = "grey" if preset("IMAGES", "RUN").backbone.in_channels == 1 else "colour"
        assert f"For {colour} pictures of " in said, name
        assert f"{preprocessing.image_size} pixels" in said, name
        kept = preprocessing.fit == "pad"
        assert ("middle of a black square" in said) == kept, name
        upscaled = f"Smaller ones are scaled up to {preprocessing.image_size}" in said
        assert upscaled == (preprocessing.smaller == "upscale" and not kept), name


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipe that breaks")
@pytest.mark.parametrize("line", ["", "--help", "generate --help"])
def test_help_whose_reader_has_gone_ends_without_a_traceback(line):
    """`codegrid NAME --help | head` where head is done before the text is."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        words = [sys.executable, "-m", "codegrid", *line.split()]
        done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
