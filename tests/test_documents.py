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
from fnmatch import fnmatch
from pathlib import Path

import pytest
from documents import (
    DOCUMENTS,
    ROOT,
    Block,
    Said,
    blocks,
    codegrid_words,
    command_lines,
    lacking,
    name_of,
    prose,
    read,
    snippets,
    spans,
    split,
    steps,
    targets,
)

from codegrid.errors import CodegridError
from codegrid.pipelines.commands import parsing
from codegrid.pipelines.commands.mistakes import SYNONYMS
from codegrid.pipelines.commands.table import COMMANDS, DEVELOPERS, Functions, Preset, load
from codegrid.pipelines.importing.checkpoints import import_checkpoint
from codegrid.pipelines.training.tokenizer.presets import CHOICES

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
# Names that every command reads for another option (pipelines/commands/mistakes.py).
OTHER_NAMES = {name for group in SYNONYMS for name in group}
FORMER = {"codegrid.prior.grid_llama", "--what"}
REFUSED = {"tokenize-dataset --batch-size 0"}


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
        foreign = span.split()[0] in ("vllm", "torchrun", "accelerate", "make", "pip", "git", "pytest", "tensorboard")
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
        for option in named - all_options() - FORMER - OTHER_NAMES
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
        line for block in blocks(read(index)) for line in block.text.split("\n") if re.fullmatch(r"[\w./-]+", line)
    ]
    pages = {(index.parent / f"{entry}.md").resolve() for entry in entries}
    assert pages == {*DOCUMENTS} - {index}
    patterns = runpy.run_path(str(index.parent / "conf.py"))["include_patterns"]
    assert all(any(fnmatch(name_of(page), pattern) for pattern in patterns) for page in pages)


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


def test_the_check_of_files_sees_what_a_step_reads():
    block = Block("", "codegrid train-prior small64 --codes runs/codes --output-dir runs/p\ncodegrid report runs/p\n")
    assert [step.reads for step in steps(block)] == [("runs/codes",), ("runs/p",)]
    assert lacking(steps(block), set()) == [
        "codegrid train-prior small64 --codes runs/codes --output-dir runs/p: runs/codes"
    ]
    assert not lacking(steps(block), {"runs/codes"})
    snippet = Block("python", 'import os\nsave_prior(model, sequence, "runs/a")\nload_prior("runs/a")\nload("runs/b")')
    assert lacking(steps(snippet), set()) == ["load('runs/b'): runs/b"]
    assert not lacking(steps(Block("", "codegrid look IMAGES\ncodegrid look TEST.parquet --data.limit 3")), set())


@per_document
def test_what_a_block_reads_is_left_by_the_blocks_before_it(document):
    """Or it is in the repository, or it is the reader's own, in capitals. Every page goes on from README's blocks."""
    before = {path for block in blocks(read(ROOT / "README.md")) for step in steps(block) for path in step.leaves}
    found = [step for block in blocks(read(document)) for step in steps(block)]
    lacks = lacking(found, set() if document.name == "README.md" else before)
    assert not lacks, "\n".join(lacks)
