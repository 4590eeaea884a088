"""The rules of the house (docs/architecture.md), read off the source."""

import ast
import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tokenizer", "prior", "pipelines")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80  # 60 is the aim (CONTRIBUTING.md)
NEVER_IMPORTS = {
    "tokenizer": {"prior", "pipelines", "scripts", "tests"},
    "prior": {"tokenizer", "pipelines", "scripts", "tests"},
    "pipelines": {"scripts", "tests"},
}
# The rooms of pipelines/, from the bottom up: a room imports only rooms before it. At most 20.
ROOMS = ["system", "pictures", "data", "artifacts", "codes", "codec", "generation", "evaluation", "training"]
ROOMS += [
    "compression",
    "report",
    "benchmarks",
    "comparison",
    "importing",
    "publishing",
    "demo",
    "quickstart",
    "commands",
]
FORBIDDEN_CODE = re.compile(r"weights_only\s*=\s*False|pickle\.loads?\b|trust_remote_code\s*=\s*True")


def source_files() -> list[Path]:
    return sorted(path for folder in (*PACKAGES, "scripts") for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_packages(source: str) -> set[str]:
    """Packages that `source` imports, anywhere in it: ours without `codegrid.`, others by their top name."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.removeprefix("codegrid.").split(".")[0] for name in names}


def function_lengths(source: str) -> dict[str, int]:
    return {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def test_the_checks_see_what_they_look_for():
    source = 'import os.path\nfrom codegrid.prior.codes import x\n\ndef f():\n    """Two\n    lines."""\n'
    source += "    from codegrid import tokenizer\n"
    assert imported_packages(source) == {"os", "prior", "tokenizer"}
    assert function_lengths(source) == {"f": 4}
    assert FORBIDDEN_CODE.search("torch.load(path, weights_only = False)")
    assert {path.parent.name for path in source_files()} >= {"tokenizer", "prior", "pipelines"}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_downwards_only(package: str):
    wrong = [
        f"{name_of(path)} imports {', '.join(sorted(bad))}"
        for path in (ROOT / package).rglob("*.py")
        if (bad := imported_packages(path.read_text()) & NEVER_IMPORTS[package])
    ]
    assert not wrong


def imported_rooms(source: str) -> set[str]:
    """Rooms of pipelines/ that `source` imports from; "" for the package's own face."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for parts in (name.split(".") for name in names if name.startswith("codegrid.pipelines")):
            found.add(parts[2] if len(parts) > 2 and parts[2] in ROOMS else "")
    return found


def test_the_rooms_of_pipelines_import_downwards_only():
    assert imported_rooms("from codegrid.pipelines.data.records import x\nfrom codegrid.pipelines import y") == {
        "data",
        "",
    }
    inside = ROOT / "pipelines"
    there = {path.stem if path.suffix else path.name for path in inside.iterdir() if path.name != "__pycache__"}
    assert there == {*ROOMS, "codegrid", "__init__"}
    assert len(ROOMS) <= 20
    wrong = []
    for place, room in enumerate(ROOMS):
        files = (inside / room).rglob("*.py") if (inside / room).is_dir() else [inside / f"{room}.py"]
        for path in files:
            bad = imported_rooms(path.read_text()) - set(ROOMS[: place + 1])
            wrong += [f"{name_of(path)} imports {other or 'the face of pipelines'}" for other in sorted(bad)]
    assert not wrong
    lowest = {path.stem: path.read_text() for path in (inside / "codegrid").glob("*.py")}
    assert imported_rooms(lowest.pop("__main__")) == {"commands"}  # nothing imports it: it is run
    assert not imported_packages("".join(lowest.values())) & set(PACKAGES)


def test_scripts_import_only_pipelines():
    allowed = {"pipelines", *sys.stdlib_module_names}
    wrong = [
        f"{name_of(path)} imports {', '.join(sorted(bad))}"
        for path in (ROOT / "scripts").rglob("*.py")
        if (bad := imported_packages(path.read_text()) - allowed)
    ]
    assert not wrong


def test_only_the_parser_parses_a_command_line():
    found = [name_of(path) for path in source_files() if imported_packages(path.read_text()) & {"tyro", "argparse"}]
    assert found == ["pipelines/commands/parsing.py"]


def test_files_and_functions_are_short():
    wrong = []
    for path in source_files():
        source = path.read_text()
        if (lines := len(source.splitlines())) > MAX_FILE_LINES:
            wrong.append(f"{name_of(path)} has {lines} lines")
        wrong += [
            f"{name_of(path)}: {function} has {lines} lines"
            for function, lines in function_lengths(source).items()
            if lines > MAX_FUNCTION_LINES
        ]
    assert not wrong


def test_no_pickle_and_no_remote_code():
    wrong = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in source_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if FORBIDDEN_CODE.search(line)
    ]
    assert not wrong


def auto_classes_that_may_run_code(source: str) -> list[int]:
    """Lines where an Auto class of transformers loads something without `trust_remote_code=False`: it would ask."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("from_pretrained", "from_config")
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id.startswith("Auto")
        and not any(
            word.arg == "trust_remote_code" and isinstance(word.value, ast.Constant) and word.value.value is False
            for word in node.keywords
        )
    ]


def test_auto_classes_are_told_to_run_no_code():
    assert auto_classes_that_may_run_code("AutoModel.from_pretrained(folder, use_safetensors=True)") == [1]
    assert auto_classes_that_may_run_code("AutoModel.from_pretrained(folder, trust_remote_code=None)") == [1]
    assert not auto_classes_that_may_run_code("AutoModel.from_pretrained(folder, trust_remote_code=False)")
    wrong = {name_of(path): auto_classes_that_may_run_code(path.read_text()) for path in source_files()}
    assert not {name: lines for name, lines in wrong.items() if lines}


def test_every_package_folder_has_an_init_and_no_test_folder_has_one():
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert not [name_of(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert not list((ROOT / "tests").rglob("__init__.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts[1:] if parts[:2] == ("pipelines", "codegrid") else ("codegrid", *parts))


def test_every_module_imports():
    for path in source_files():
        if path.is_relative_to(ROOT / "scripts"):
            runpy.run_path(str(path))  # not as __main__: it only imports
            continue
        if path.name != "__main__.py":
            importlib.import_module(module_name(path))


def test_no_file_is_loaded_under_two_names():
    """A folder of the repository on sys.path would give a second `tokenizer` beside `codegrid.tokenizer`."""
    names: dict[Path, list[str]] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and (path := Path(file)).is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES:
            names.setdefault(path, []).append(name)
    assert len(names) > 100
    assert {path: found for path, found in names.items() if found != [module_name(path)]} == {}


# Rooms whose errors do not all have both sentences yet. Whoever finishes a room takes its line out.
UNFINISHED: set[str] = set()


# Rooms within a room that have an owner of their own.
SEPARATE = ("tokenizer/hub", "tokenizer/images", "prior/sampling.py", "prior/decoding", "prior/distribution.py")


def room_of(path: Path) -> str:
    name = name_of(path)
    parts = name.split("/")
    owned = [place for place in SEPARATE if name.startswith(place)]
    return owned[0] if owned else "/".join(parts[:2]) if parts[0] == "pipelines" else parts[0]


def error_classes(sources: list[str]) -> set[str]:
    """CodegridError and the names of all classes that come from it, by their bases."""
    bases = {
        node.name: {ast.unparse(base).split(".")[-1] for base in node.bases}
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
    }
    found = {"CodegridError"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


def written_ends(node: ast.expr) -> list[str | None]:
    """The texts with which a sentence may end, as far as they are written; None for the value of an expression."""
    if isinstance(node, ast.Constant):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return written_ends(node.values[-1]) if node.values else [""]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return written_ends(node.right)
    if isinstance(node, ast.IfExp):
        return written_ends(node.body) + written_ends(node.orelse)
    return [None]


def is_inside_braces(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) and bool(node.values) and isinstance(node.values[-1], ast.FormattedValue)


def half_said(source: str, errors: set[str]) -> list[str]:
    """ "line: reason" for every error made in `source`, and every `require`, that lacks one of its two sentences."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id in errors:
            found.append(f"{node.lineno}: {node.exc.id} is raised without a word")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).split(".")[-1]
        if name not in {*errors, "require"}:
            continue
        words = dict(zip(("what", "remedy"), node.args[name == "require" :], strict=False))
        words |= {word.arg: word.value for word in node.keywords if word.arg}
        if any(isinstance(word, ast.Starred) for word in node.args) or any(word.arg is None for word in node.keywords):
            continue  # both sentences of another error, handed on
        for word in ("what", "remedy"):
            if word not in words:
                found.append(f"{node.lineno}: no {word}")
            elif "" in (ends := written_ends(words[word])):
                found.append(f"{node.lineno}: an empty {word}")
            elif word == "what" and (
                is_inside_braces(words[word]) or any(end is not None and not end.endswith(".") for end in ends)
            ):
                found.append(f"{node.lineno}: what does not end in a full stop")
    return found


def test_what_half_said_finds():
    errors = error_classes(["class BadError(errors.CodegridError): ...", "class Worse(BadError): ...", "class C: ..."])
    assert errors == {"CodegridError", "BadError", "Worse"}
    whole = ['raise Worse("A.", "B.")', 'require(x, f"{a} is {b}.", remedy="B.")', "raise Worse(*both)"]
    whole += [
        "e = Worse(a, b)",
        'CodegridError("A" + ("." if x else f"{b}."), a)',
        "raise",
        "raise error",
        "raise ValueError",
    ]
    assert [line for line in whole if half_said(line, errors)] == []
    half = ['Worse("A.")', 'require(x, "A.")', 'require(x, "A", "B.")', 'Worse(f"A {x}", "B.")', "raise Worse"]
    half += ['Worse("A.", "")', 'errors.Worse("A.", "B." if x else "")', 'Worse("A." if x else "A", "B.")', "Worse(a)"]
    assert [line for line in half if not half_said(line, errors)] == []


def test_every_error_says_what_is_wrong_and_what_to_do():
    sources = {path: path.read_text() for path in source_files()}
    errors = error_classes(list(sources.values()))
    assert len(errors) > 8
    assert {room_of(path) for path in sources} >= UNFINISHED
    wrong = [
        f"{name_of(path)}:{finding}"
        for path, source in sources.items()
        if room_of(path) not in UNFINISHED
        for finding in half_said(source, errors)
    ]
    assert not wrong
