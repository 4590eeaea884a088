"""The documents as the tests read them: blocks, command lines, snippets, and the files that each of these names."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from codegrid.pipelines.artifacts.shipped import SHIPPED
from codegrid.pipelines.commands.table import COMMANDS, DEVELOPERS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# Before a block that is run: an HTML comment, which no rendered page shows. What stands behind "run:" is the test's.
MARK = re.compile(r"<!-- run -->")


class Block(NamedTuple):
    """A block of code of a document: its language, where a fence names one, its lines, and whether it is run."""

    language: str
    text: str
    is_run: bool = False


def parts(text: str) -> tuple[list[Block], str]:
    """The blocks of a document, and the document without them.

    A block is fenced, or indented by four after an empty line; one with empty lines inside is one.
    """
    found, rest, lines, index = [], [], text.split("\n"), 0
    while index < len(lines):
        end = index + 1
        is_run = MARK.fullmatch("".join(lines[max(index - 2, 0) : index]).strip()) is not None
        if lines[index].startswith("```"):
            end += next(place for place, line in enumerate(lines[end:]) if line.startswith("```"))
            found.append(Block(lines[index][3:].strip(), "\n".join(lines[index + 1 : end]), is_run))
            end += 1
        elif lines[index].startswith("    ") and (index == 0 or not lines[index - 1].strip()):
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            found.append(Block("", "\n".join(line[4:] for line in lines[index:end]).strip("\n"), is_run))
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


def split(words: list[str]) -> tuple[str, list[str]]:
    """A command's name, of one word or two, and the words after it."""
    length = 1 + (words[0] == DEVELOPERS)
    return " ".join(words[:length]), words[length:]


def read(document: Path) -> str:
    """The text of a document; of the changelog the newest version, since older ones tell of what there was then."""
    text = document.read_text(encoding="utf-8")
    return text if document.name != "CHANGELOG.md" else "\n## ".join(text.split("\n## ")[:2])


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def snippets(text: str) -> list[str]:
    """The Python of a document: fenced as such, or indented and beginning as Python does."""
    return snippets_of(blocks(text))


def snippets_of(found: list[Block]) -> list[str]:
    begins = r"(from [\w.]+ )?import \w|\w+(, \w+)* = |for \w+ in "
    return [
        block.text
        for block in found
        if block.language == "python" or (not block.language and re.match(begins, block.text))
    ]


# Options whose value is read, and those whose value is written.
READ = {
    "--tokenizer",
    "--codes",
    "--prior",
    "--pipeline",
    "--data.source",
    "--source",
    "--reference",
    "--reference.source",
}
READ |= {"--folder", "--checkpoint", "--config", "--verify-images", "--init-from", "--feature-weights"}
READ |= {"--test-data", "--comparison", "--taming", "--llamagen", "--repository", "--generated", "--samples"}
READ |= {"--files", "--file", "--context", "--disturbance.prior"}
READ_FIRST = {"report", "look", "codec-info"}  # commands whose first word is read
WRITTEN_TO = {"--output-dir", "--output", "--archive"}
# What commands write where they are not told, below the folder that they are told.
PARTS = {"quickstart": ("images", "tokenizer", "codes", "prior", "pipeline", "report.json")}
PARTS["export-onnx"] = ("encoder.onnx", "decoder.onnx", "onnx.json")
DEFAULTS = {"quickstart": "runs/quickstart", f"{DEVELOPERS} compare-quantizers": "runs/compare-quantizers"}
DEFAULTS[f"{DEVELOPERS} search-recipe"] = "runs/search-recipe"
# A name in capitals is the reader's own: IMAGES, CODES, PEERS/taming-transformers, TEST.parquet, USER/NAME.
OWN = re.compile(r"[A-Z][A-Z_0-9]*([./][\w.-]+)*")
# Pictures and weights that a page says where to get, or that only its figures are of, and what comes with the package.
NAMED_DATA = {"emoji64", "squeezenet1_1_caffe.safetensors", "none", *SHIPPED}  # --tokenizer none: there is none


class Step(NamedTuple):
    """A line of a block or a statement of a snippet: what it reads, and what it leaves."""

    text: str
    reads: tuple[str, ...]
    leaves: tuple[str, ...]


def steps(block: Block) -> list[Step]:
    """The steps of a block of commands or of Python."""
    if block.text in snippets_of([block]):
        return [_snippet_step(statement) for statement in ast.parse(block.text).body]
    lines = block.text.replace("\\\n", " ").split("\n")
    return [step for line in lines for part in line.split(" && ") if (step := _line_step(part))]


def _line_step(line: str) -> Step | None:
    words = codegrid_words(line)
    if cloned := re.match(r" *git clone \S+/([\w.-]+)(?: (\S+))?", line):
        return Step(line, (), (cloned[2] or cloned[1],))
    if words is None or not words or words[0].startswith("-") or "--help" in words:
        return None
    name, rest = split([word.strip("[]") for word in words])
    reads, leaves = [], [DEFAULTS[name]] if name in DEFAULTS else []
    if name in READ_FIRST and rest and not rest[0].startswith("-"):
        reads.append(rest[0])
    for place, word in enumerate(rest[:-1]):
        if word in READ:
            reads.append(rest[place + 1])
        if word in WRITTEN_TO:
            leaves = [rest[place + 1]]
    leaves += [f"{folder}/{part}" for folder in leaves for part in PARTS.get(name, ())]
    return Step(line, tuple(reads), tuple(leaves))


def _snippet_step(statement: ast.stmt) -> Step:
    """Paths of a statement are its texts with a slash and no space; a call of `save...` leaves them."""
    reads, leaves = [], []
    for call in ast.walk(statement):
        if not isinstance(call, ast.Call):
            continue
        saves = ast.unparse(call.func).rpartition(".")[2].startswith("save")
        texts = [part.value for part in call.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        (leaves if saves else reads).extend(text for text in texts if re.fullmatch(r"[\w.-]+(/[\w.-]+)+", text))
    return Step(ast.unparse(statement), tuple(reads), tuple(leaves))


def lacking(found: list[Step], there: set[str]) -> list[str]:
    """What steps read that is neither there, nor left by a step before, nor the reader's own."""
    there, lacks = set(there), []
    for step in found:
        for path in step.reads:
            known = path in there or OWN.fullmatch(path) or path in NAMED_DATA or (ROOT / path).exists()
            lacks += [] if known else [f"{step.text.strip()}: {path}"]
        there |= set(step.leaves)
    return lacks
