"""What the fault suite stands on: tiny images, their clean results, and the table at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fault_commands
from fault_commands import PRIOR, TOKENIZER, Ranks, make_images, run, tokenizing, training


@dataclass
class Row:
    """A line of the table."""

    fault: str
    tries: int = 0
    survived: int = 0
    lost: str = "0"


_ROWS: list[Row] = []


def pytest_configure() -> None:
    fault_commands.prepare()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _ROWS:
        terminalreporter.section("faults")
        terminalreporter.write_line("| fault | tries | survived | lost |\n|---|---|---|---|")
        for row in _ROWS:
            terminalreporter.write_line(f"| {row.fault} | {row.tries} | {row.survived} | {row.lost} |")


@pytest.fixture
def tally() -> Callable[[str], Row]:
    """`with tally("fault") as row:` count `row.tries` and `row.survived`; a failure says so in the table."""

    @contextmanager
    def make(fault: str):
        _ROWS.append(row := Row(fault))
        try:
            yield row
        except BaseException:
            row.lost = "failed, see above"
            raise

    return make


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/, and what undisturbed commands made of them: tokenizer/, codes/, prior/, pipeline/."""
    folder = tmp_path_factory.mktemp("clean")
    images = make_images(folder / "images", 80)
    (images / "even" / "image-0001-text.png").write_text("no picture")
    run("train_tokenizer", *TOKENIZER.split(), *training(folder, "tokenizer"), folder=folder)
    run("tokenize_dataset", *tokenizing(folder), "--output-dir", folder / "codes", folder=folder)
    run("train_prior", *PRIOR.split(), *training(folder, "prior"), folder=folder)
    parts = ["--tokenizer", folder / "tokenizer", "--prior", folder / "prior"]
    run("make_pipeline", *parts, "--output-dir", folder / "pipeline", folder=folder)
    return folder


@pytest.fixture(scope="session")
def clean_two(clean: Path) -> Path:
    """tokenizer2/ and prior2/: undisturbed runs of two ranks."""
    for job, preset in (("tokenizer", TOKENIZER), ("prior", PRIOR)):
        arguments = [*preset.split(), *training(clean, job), "--output-dir", clean / f"{job}2"]
        ranks = Ranks(2, f"train_{job}", *arguments, folder=clean)
        assert ranks.wait() == [0, 0], ranks.output
    return clean
