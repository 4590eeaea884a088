"""What is measured against another way of doing it, in one run, as a ratio: one file for each thing measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from pipelines.benchmarks import autoencoding, nearest_codes, train_step
from pipelines.benchmarks.report import Row, Settings, machine, write_report

# What `--what` takes: each gives its rows, which it has printed. A new benchmark is a file, a name and a line here.
BENCHMARKS: dict[str, Callable[[Settings], list[Row]]] = {
    "nearest-codes": nearest_codes.measure,
    "train-step": train_step.measure,
    "encode": autoencoding.measure_encoding,
    "decode": autoencoding.measure_decoding,
}


def benchmark(
    what: Literal["nearest-codes", "train-step", "encode", "decode"],
    taming: str | None = None,
    llamagen: str | None = None,
    compile: bool = False,
    threads: int = 0,
    repeats: int = 9,
    output: str | None = None,
) -> None:
    """Time a part of the project beside other ways of computing the same, and print a table.

    All of them run in turn, again and again; a ratio is the median over these rounds of the first one's time by theirs,
    so that a machine that slows down for a while slows down both.

    Args:
        what: "nearest-codes": the nearest code of each feature; "train-step": a step of stage one at 128x128;
            "encode", "decode": images of 256x256 to codes, f16, and back.
        taming: folder of a clone of https://github.com/CompVis/taming-transformers, to run its own code beside ours.
        llamagen: folder of a clone of https://github.com/FoundationVision/LlamaGen, likewise.
        compile: time ours compiled as well; compiling takes minutes.
        threads: of the CPU; 0 leaves torch's own choice.
        repeats: rounds.
        output: JSON file for the machine, the settings and the rows; none writes no file.
    """
    if threads:
        torch.set_num_threads(threads)
    settings = Settings(what, taming, llamagen, compile, repeats)
    print(machine())
    print(f"medians of {repeats} rounds")
    rows = BENCHMARKS[what](settings)
    if output:
        write_report(output, settings, rows)
