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
FORBIDDEN_CODE = re.compile(r"weights_only\s*=\s*False|pickle\.loads?\b|trust_remote_code\s*=\s*True")


def source_files() -> list[Path]:
    return sorted(path for folder in (*PACKAGES, "scripts") for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_packages(source: str) -> set[str]:
    """Top-level packages that `source` imports, wherever the import stands; relative imports stay at home."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def function_lengths(source: str) -> dict[str, int]:
    return {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def test_the_checks_see_what_they_look_for():
    source = 'import os.path\nfrom prior.codes import x\n\ndef f():\n    """Two\n    lines."""\n    import tokenizer\n'
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


def test_scripts_import_only_pipelines_and_the_parser():
    allowed = {"pipelines", "tyro", "command_line", *sys.stdlib_module_names}  # command_line: scripts/command_line.py
    wrong = [
        f"{name_of(path)} imports {', '.join(sorted(bad))}"
        for path in (ROOT / "scripts").rglob("*.py")
        if (bad := imported_packages(path.read_text()) - allowed)
    ]
    assert not wrong


def test_only_scripts_parse_a_command_line():
    wrong = [
        name_of(path)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if imported_packages(path.read_text()) & {"tyro", "argparse"}
    ]
    assert not wrong


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


def test_every_package_folder_has_an_init_and_no_test_folder_has_one():
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert not [name_of(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_every_module_imports(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")  # where Python itself looks first when a script is run
    for path in source_files():
        if path.is_relative_to(ROOT / "scripts"):
            runpy.run_path(str(path))  # not as __main__: it only imports
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
