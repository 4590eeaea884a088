"""The documents cannot lie: what README, CONTRIBUTING, CHANGELOG and docs/ name is looked for where it is.

Commands and options go through the real parser, which runs nothing. A document that fails here is wrong, not the test.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import importlib
import io
import os
import re
import runpy
import shlex
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.commands import parsing
from codegrid.pipelines.commands.table import COMMANDS, DEVELOPERS, Functions, Preset, load
from codegrid.pipelines.importing.checkpoints import import_checkpoint
from codegrid.pipelines.training.tokenizer.presets import CHOICES
from codegrid.prior import PriorConfig, SequenceConfig, make_prior
from codegrid.tokenizer import VQModel

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SAVED = ROOT / "tests" / "saved_by_be0a219"

# What stands for a value of the reader's, where the parser looks at the value while it parses.
PLACEHOLDERS = {"FAMILY": "taming", "DIR": str(SAVED / "tokenizer"), "N": "2", "M": "2"}
# Files and folders that commands write, or that a user has: they are in no checkout.
WRITTEN = (
    "runs/* images/ checkpoints/* evaluation/* data/codes-* tensorboard/ pictures/ codes/ tokenizer/ prior/ pipeline/"
)
WRITTEN = [
    *WRITTEN.split(),
    "samples/*",
    ".shards/",
    "README.md",
    "report.py",
    "train/",
    "val/",
    "unlabelled/",
    "Train/",
]
WRITTEN += ["val2017/", "test_split/", ".venv/*"]
# What a snippet takes from its reader.
READERS = {"pictures", "images", "labels", "codebook_size", "label"}
# Names that only the changelog says: of what there was before, and of what is refused.
FORMER = {"codegrid.prior.grid_llama", "--what"}
REFUSED = {"tokenize-dataset --batch-size 0"}


class Block(NamedTuple):
    """A block of code of a document: its language, where a fence names one, and its lines."""

    language: str
    text: str


def parts(text: str) -> tuple[list[Block], str]:
    """The blocks of a document, and the document without them.

    A block is fenced, or indented by four after an empty line; one with empty lines inside is one.
    """
    found, rest, lines, index = [], [], text.split("\n"), 0
    while index < len(lines):
        end = index + 1
        if lines[index].startswith("```"):
            end += next(place for place, line in enumerate(lines[end:]) if line.startswith("```"))
            found.append(Block(lines[index][3:].strip(), "\n".join(lines[index + 1 : end])))
            end += 1
        elif lines[index].startswith("    ") and (index == 0 or not lines[index - 1].strip()):
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            found.append(Block("", "\n".join(line[4:] for line in lines[index:end]).strip("\n")))
        else:
            rest.append(lines[index])
            index = end
            continue
        rest += [""] * (end - index)
        index = end
    return found, "\n".join(rest)


def blocks(text: str) -> list[Block]:
    return parts(text)[0]


def prose(text: str) -> str:
    return parts(text)[1]


def spans(text: str) -> list[str]:
    """What stands in `backticks` outside of blocks, each on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


class Said(NamedTuple):
    """A command line of a document: its words after `codegrid`, and whether it is said whole."""

    words: tuple[str, ...]
    whole: bool


def command_lines(text: str) -> list[Said]:
    """The project's command lines of a document: whole in blocks, and in part in the text."""
    found = []
    for block in blocks(text):
        if not block.language or block.language in ("bash", "sh", "console"):
            for line in block.text.replace("\\\n", " ").split("\n"):
                found += [Said(tuple(words), True) for part in line.split(" && ") if (words := codegrid_words(part))]
    return found + [Said(tuple(words), False) for span in spans(text) if (words := codegrid_words(span))]


def codegrid_words(line: str) -> list[str] | None:
    """The words after `codegrid` of a command line by any of its names (`scripts/NAME.py`, `make NAME ARGS=...`)."""
    line = line.replace("USER/NAME", "user/name")
    try:
        words = shlex.split(re.sub(r" ?(\| ?|\|)[\w-]+", "", line), comments=True)  # the first of several choices
    except ValueError:  # an apostrophe: no command line
        return None
    words = [word.strip("[]") for word in words if word != "..."]
    if not words:
        return None
    if words[0] in ("torchrun", "accelerate", "python", "python3") and "codegrid" in words and "-m" in words:
        words = words[words.index("codegrid") :]
    if words[0] == "python":
        words = words[1:] or [""]
    if words[0] == "make":
        given = shlex.split(next((word[5:] for word in words if word.startswith("ARGS=")), ""))
        script = scripts_of_targets().get(words[1] if len(words) > 1 else "")
        return [*command_of(script), *given] if script else None
    if words[0] in ("codegrid", ".venv/bin/codegrid"):
        return words[1:]
    script = re.fullmatch(r"(?:scripts/)?([a-z_]+)\.py", words[0])
    return [*command_of(script[1]), *words[1:]] if script and (ROOT / "scripts" / f"{script[1]}.py").exists() else None


def command_of(script: str) -> list[str]:
    """The words of the command that a script is."""
    name = script.replace("_", "-")
    return [name] if name in COMMANDS else [DEVELOPERS, name]


@functools.cache
def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@functools.cache
def scripts_of_targets() -> dict[str, str]:
    """Targets that only pass `ARGS` on to a script, and which."""
    recipe = r"^([a-z-]+):.*\n\t\$\(BIN\)/python scripts/(\w+)\.py \$\(ARGS\)$"
    return dict(re.findall(recipe, (ROOT / "Makefile").read_text(), re.MULTILINE))


@functools.cache
def help_of(line: str) -> str:
    """What `codegrid LINE --help` says, in lines that break no name."""
    shown = io.StringIO()
    name, rest = split(line.split())
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        patch.setenv("COLUMNS", "100")
        parsing._call(COMMANDS[name], f"codegrid {name}", [*rest, "--help"])
    return shown.getvalue()


@functools.cache
def options(line: str) -> dict[str, bool]:
    """The options of a command, and whether each has to be given."""
    found, names = {}, []
    for text in (line.strip("│ ") for line in help_of(line).splitlines()):
        if text.startswith("-"):
            names = re.findall(r"--[A-Za-z][\w.-]*", text.partition("  ")[0])
            found |= dict.fromkeys(names, False)
        if text.endswith("(required)"):
            found |= dict.fromkeys(names, True)
    return found


def split(words: list[str]) -> tuple[str, list[str]]:
    """A command's name, of one word or two, and the words after it."""
    length = 1 + (words[0] == DEVELOPERS)
    return " ".join(words[:length]), words[length:]


def choices(name: str) -> list[str]:
    """The presets or functions between which a command's first word chooses."""
    parsed = COMMANDS[name].parsed
    if isinstance(parsed, Preset):
        return list(load(parsed.presets))
    return list(parsed.loaded()) if isinstance(parsed, Functions) else []


@functools.cache
def all_options() -> set[str]:
    """The options of all commands, with every kind of quantizer and discriminator."""
    residual = "quantizer.type residual --quantizer.inner"
    kinds = [(path if "inner" not in path else residual, kind) for path in CHOICES for kind in CHOICES[path]]
    fitting = [(path, kind) for path, kind in kinds if path != residual or kind in ("vq", "simvq", "fsq", "lfq")]
    lines = [f"train-tokenizer small64 --{path}.type {kind}" for path, kind in fitting]
    for name, command in COMMANDS.items():
        words = choices(name)[:1] if isinstance(command.parsed, Preset) else choices(name)  # presets share a config
        lines += [f"{name} {word}".strip() for word in words or [""]]
    return {option for line in lines for option in options(line)} | {"--help", "--version"}


@functools.cache
def problem(said: Said) -> str | None:
    """What the real parser has against a command line; None where it takes it."""
    words = [PLACEHOLDERS.get(word, word) for word in said.words]
    if words in ([], ["--help"], ["--version"], ["NAME"], [DEVELOPERS], [DEVELOPERS, "--help"], [DEVELOPERS, "NAME"]):
        return None
    if words[0] == "NAME" and words[1:] == ["--help"]:
        return None
    name, rest = split(words)
    if name not in COMMANDS:
        return f"no command {name!r}"
    if COMMANDS[name].first and rest and not rest[0].startswith("-"):
        rest = [COMMANDS[name].first, *rest]
    if " ".join(words) in REFUSED:
        return None
    if not said.whole or "--help" in rest:
        rest = completed(name, [word for word in rest if word != "--help"])
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes), contextlib.redirect_stdout(boxes):
            parsing._call(COMMANDS[name], f"codegrid {name}", rest)
    except CodegridError as error:
        return str(error)
    except SystemExit:
        return boxes.getvalue()
    return None


def completed(name: str, rest: list[str]) -> list[str]:
    """A command line that a sentence names in part, with the values that it leaves out."""
    line, known = name, choices(name)
    given = {word.split("=")[0].replace("_", "-") for word in rest if word.startswith("--")}
    if known:
        if not rest or rest[0].startswith("-") or rest[0] in ("PRESET", "NAME"):
            fitting = [word for word in known if given <= set(options(f"{name} {word}"))]
            rest = [(fitting or known)[0], *(rest[1:] if rest[:1] in (["PRESET"], ["NAME"]) else rest)]
        if rest[0] not in known:
            return rest  # the parser says so
        line = f"{name} {rest[0]}"
    if rest and rest[-1].startswith("--"):
        rest = [*rest, *value_of(line, rest[-1])]
    first = r"positional arguments.*\n(?:[ -]+\n)?[│ ]*(?:\{([\w-]+)|(STR))"
    if not rest and (positional := re.search(first, help_of(line))):
        rest = [positional[1] or PLACEHOLDERS["FAMILY"]]
    missing = [option for option, required in options(line).items() if required and option not in given]
    return [*rest, *(word for option in missing for word in (option, "2"))]


def value_of(line: str, option: str) -> list[str]:
    """A value for an option: the first of those to choose from, a number (which is a name too), none for a flag."""
    name = re.escape(option.replace("_", "-"))
    said = re.search(rf"{name}(?: (\{{[\w.-]+|\S+))?", help_of(line))
    is_flag = said is None or said[1] is None or re.search(rf"{name}, --", help_of(line))
    return [] if is_flag else [said[1][1:] if said[1].startswith("{") else "2"]


def read(document: Path) -> str:
    """The text of a document; of the changelog the newest version, since older ones tell of what there was then."""
    text = document.read_text(encoding="utf-8")
    return text if document.name != "CHANGELOG.md" else "\n## ".join(text.split("\n## ")[:2])


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


per_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


def test_the_checks_see_what_they_look_for():
    text = "# One\n\nSay `make test`, or\n\n    codegrid evaluate \\\n        generation --pipline P  # why\n\n    x\n"
    text += "\n```python\nimport os\n```\n"
    assert blocks(text) == [
        Block("", "codegrid evaluate \\\n    generation --pipline P  # why\n\nx"),
        Block("python", "import os"),
    ]
    assert spans(text) == ["make test"]
    [said] = command_lines(text)
    assert said == (("evaluate", "generation", "--pipline", "P"), True)
    assert "Did you mean --pipeline" in problem(said)
    for line, wrong in [
        ("codegrid train-tokenizer", "needs a preset"),
        ("codegrid tran-prior quickstart", "no command"),
        ("codegrid train-prior quickstart --codes CODES", "output-dir"),
        ("codegrid train-prior quickstart --codes CODES --output-dir OUT --max-steps many", "max-steps"),
        ("make compare-quantizers ARGS='--step 4'", "Did you mean --steps"),
        ("torchrun --nproc_per_node 2 -m codegrid train-prior quickst", "no preset"),
    ]:
        assert wrong in (problem(Said(tuple(codegrid_words(line)), True)) or ""), line
    assert problem(Said(tuple(codegrid_words("scripts/benchmark.py train-step | encode")), False)) is None
    assert len(DOCUMENTS) >= 10
    assert sum(said.whole for document in DOCUMENTS for said in command_lines(read(document))) >= 30


@per_document
def test_command_lines_parse(document):
    problems = [
        f"codegrid {shlex.join(said.words)}: {wrong}"
        for said in command_lines(read(document))
        if (wrong := problem(said))
    ]
    assert not problems, "\n".join(problems)


def test_command_lines_of_docstrings_parse():
    """Presets and commands say how they are typed; their help texts show it."""
    paths = [path for folder in ("tokenizer", "prior", "pipelines") for path in (ROOT / folder).rglob("*.py")]
    texts = {name_of(path): path.read_text() for path in paths if path.name != "checkpoints.py"}
    texts["import-checkpoint --help"] = import_checkpoint.__doc__  # is put together
    problems, number = [], 0
    for place, text in texts.items():
        for line in re.findall(r"^ +(codegrid [a-z].*)$", re.sub(r"\\+\n", " ", text), re.MULTILINE):
            number += 1
            wrong = problem(Said(tuple(codegrid_words(line) or ()), True))
            problems += [f"{place}: {line}: {wrong}"] if wrong else []
    assert number >= 10
    assert not problems, "\n".join(problems)


@per_document
def test_make_targets_extras_and_variables_exist(document):
    text = read(document)
    said = re.findall(r"(?:`|^    |&& |!)make ([a-z][a-z-]*)", text, re.MULTILINE)
    assert not set(said) - targets()
    extras = set(re.findall(r"^([a-z-]+) = \[\"", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    named = {extra for group in re.findall(r"pip install [^\n`]*\[([\w,-]+)\]", text) for extra in group.split(",")}
    assert not named - extras
    source = "".join(
        path.read_text() for folder in ("tokenizer", "prior", "pipelines") for path in (ROOT / folder).rglob("*.py")
    )
    assert not [name for name in re.findall(r"CODEGRID_[A-Z_]+", text) if name not in source]


@per_document
def test_options_exist(document):
    """Also those that a sentence or a table names alone, and fields of a config as Python names them."""
    roots = {option[2:].split(".")[0] for option in all_options() if "." in option}
    named = set()
    for span in spans(read(document)):
        foreign = span.split()[0] in ("vllm", "torchrun", "accelerate", "make", "pip", "git", "pytest")
        if codegrid_words(span) is None and not foreign:
            named |= {option.replace("_", "-") for option in re.findall(r"(?<![\w-])--[A-Za-z][\w.-]*", span)}
        if (
            (field := re.fullmatch(r"([a-z_]+)(\.[a-z_0-9]+)+", span))
            and field[1] in roots
            and not span.endswith(".py")
        ):
            named.add("--" + span.replace("_", "-"))
    missing = {
        option
        for option in named - all_options() - FORMER
        if not any(known.startswith(f"{option}.") for known in all_options())
    }
    assert not missing


@per_document
def test_values_of_options_are_taken(document):
    """`--model.architecture qwen3`: the command that has these options takes this value."""
    wrong = []
    for span in spans(read(document)):
        if not span.startswith("--") or " " not in span:
            continue
        words = [PLACEHOLDERS.get(word, word) for word in shlex.split(re.sub(r" \| [\w-]+", "", span))]
        given = {word.replace("_", "-") for word in words if word.startswith("--")}
        lines = [line for line in ("train-tokenizer small64", "train-prior small64") if given & set(options(line))]
        problems = [problem(Said((*line.split(), *words), False)) for line in lines]
        wrong += [f"{span}: {problems[0]}"] if problems and all(problems) else []
    assert not wrong, "\n".join(wrong)


@per_document
def test_presets_exist(document):
    text = " ".join(prose(read(document)).split())
    named = re.findall(r"[Pp]resets?:? ((?:`[^`]+`(?:, and |, | and | or | to )?)+)", text)
    assert not {preset for group in named for preset in re.findall(r"`([^`]+)`", group)} - {
        preset for name in COMMANDS for preset in presets(name)
    }


def presets(name: str) -> list[str]:
    return choices(name) if isinstance(COMMANDS[name].parsed, Preset) else []


def test_the_readmes_table_has_every_preset_of_the_tokenizer():
    table = read(ROOT / "README.md").partition("| preset of `codegrid train-tokenizer`")[2].partition("\n\n")[0]
    named = [
        name
        for row in table.split("\n")[1:]
        for name in re.findall(r"`([^`]+)`", row.split("|")[1] if "|" in row else "")
    ]
    assert sorted(named) == sorted(presets("train-tokenizer"))


@functools.cache
def repository() -> tuple[set[str], set[str]]:
    """Files and folders of the repository."""
    skipped = re.compile(r"^(\.git|\.venv.*|build|dist|runs|.*\.egg-info|__pycache__|\..*_cache)$")
    files = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not skipped.match(name)]
        files += [Path(folder, name).relative_to(ROOT) for name in names]
    return {file.as_posix() for file in files}, {parent.as_posix() for file in files for parent in file.parents}


@per_document
def test_files_and_tests_exist(document):
    files, folders = repository()
    missing, last = [], ""
    for span in spans(read(document)):
        path, *test = span.split("::")
        path = path or last
        is_file = re.fullmatch(r"[\w./*-]+\.(py|sh|toml|ipynb|cff|yml|md)", path)
        is_folder = re.fullmatch(r"[\w.-]+(/[\w.*-]+)*/", path)
        if not (is_file or is_folder) or re.search("NAME|RUN|NNN|STEP", path):
            continue
        last = path
        if any(fnmatch(path, pattern) for pattern in WRITTEN) and not test:
            continue
        beside = (document.parent / path).resolve()
        known = files if is_file else {f"{folder}/" for folder in folders}
        found = [name for name in known if fnmatch(f"/{name}", f"*/{path}") or beside == ROOT / name]
        if not any(not test or f"def {test[0].split('[')[0]}(" in (ROOT / name).read_text() for name in found):
            missing.append(span)
    assert not missing


@per_document
def test_tests_that_a_table_abbreviates_exist(document):
    """`::test_x` after `tests/y.py`, in one cell, and `..._x_...`."""
    sources = {name: (ROOT / name).read_text() for name in repository()[0] if fnmatch(name, "tests/*test_*.py")}
    missing = []
    for line in read(document).split("\n"):
        for name, _, test in re.findall(r"`(tests/[\w/]+\.py)?(::|\.\.\._)([\w.]+)`", line):
            known = {found for source in sources.values() for found in re.findall(r"def (test_\w+)\(", source)}
            pattern = test.strip(".").replace("...", "*")
            missing += [] if name or any(fnmatch(found, f"*{pattern}*") for found in known) else [test]
    assert not missing


@per_document
def test_names_of_the_package_exist(document):
    names = set(re.findall(r"(?<![\w./-])codegrid(?:\.[A-Za-z_]\w*)+", read(document)))
    assert not [name for name in sorted(names - FORMER) if not resolves(name)]


def resolves(name: str) -> bool:
    """Whether a module, or something in one, has this dotted name."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        try:
            return functools.reduce(getattr, parts[length:], value) is not None
        except AttributeError:
            return False
    return False


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@per_document
def test_links_lead_somewhere(document):
    text = read(document)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in anchors(read(file))):
            broken.append(target)
    assert not broken


def test_every_page_is_in_the_toctree():
    """And Sphinx's configuration takes it in; `make docs` builds the rest of the proof."""
    index = ROOT / "docs" / "index.md"
    entries = [
        line for block in blocks(read(index)) for line in block.text.split("\n") if re.fullmatch(r"[\w./]+", line)
    ]
    pages = {(index.parent / f"{entry}.md").resolve() for entry in entries}
    assert pages == {*DOCUMENTS} - {index}
    patterns = runpy.run_path(str(index.parent / "conf.py"))["include_patterns"]
    assert all(any(fnmatch(name_of(page), pattern) for pattern in patterns) for page in pages)


def snippets(text: str) -> list[str]:
    """The Python of a document: fenced as such, or indented and beginning as Python does."""
    begins = r"(from [\w.]+ )?import \w|\w+(, \w+)* = |for \w+ in "
    return [
        block.text
        for block in blocks(text)
        if block.language == "python" or (not block.language and re.match(begins, block.text))
    ]


def free_names(source: str, known: set[str]) -> tuple[set[str], set[str]]:
    """Names that a snippet reads and nothing has given it, and those that it gives."""
    tree = ast.parse(source)
    given = {
        alias.asname or alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    given |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    read_names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return read_names - given - known - set(dir(builtins)), given


@per_document
def test_snippets_compile_and_have_their_imports(document):
    known = set(READERS)
    for snippet in snippets(read(document)):
        missing, given = free_names(snippet, known)
        assert not missing, snippet
        known |= given
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("codegrid"):
                assert all(resolves(f"{node.module}.{alias.name}") for alias in node.names), snippet


@pytest.fixture
def quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with runs/quickstart, of a small tokenizer and a prior that has some of its classes."""
    run = tmp_path / "runs" / "quickstart"
    for name in ("tokenizer", "codes"):
        shutil.copytree(SAVED / name, run / name)
    tokenizer = VQModel.from_pretrained(run / "tokenizer").eval()
    sequence = SequenceConfig(
        32,
        tokenizer.config.grid_shape,
        class_names=("Sandal", "Bag", "Coat", "Dress"),
        tokenizer_fingerprint=tokenizer.fingerprint(),
    )
    prior = make_prior(PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), sequence)
    ImageGenerationPipeline(tokenizer, prior, sequence).save_pretrained(run / "pipeline")
    monkeypatch.chdir(tmp_path)
    return run


def test_the_readmes_snippets_run_one_after_the_other(quickstart):
    """All of them read runs/quickstart alone; `pictures`, `labels` and `images` are what a reader has."""
    names = {}
    readers = {
        "pictures": [Image.new("RGB", (24, 24), colour) for colour in ("red", "green")],
        "labels": ["Sandal", 3],
        "images": torch.zeros(2, 3, 16, 16),
    }
    found = snippets(read(ROOT / "README.md"))
    assert len(found) == 2
    for snippet in found:
        names |= readers
        exec(compile(snippet, "README.md", "exec"), names)
    assert len(names["completed"]) == 2
    assert names["model"].config.grid_shape == (2, 2)
    assert names["codes"].num_rows > 0
