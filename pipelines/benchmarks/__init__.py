"""What is measured against another way of doing it, in one run, as a ratio: one file for each thing measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from codegrid.pipelines.benchmarks import (
    autoencoding,
    codes_reading,
    nearest_codes,
    prior_step,
    rounded_weights,
    sampling,
    train_step,
)
from codegrid.pipelines.benchmarks.report import Row, Settings, write_report
from codegrid.pipelines.system.devices import machine

# What `--what` takes: each gives its rows, which it has printed. A new benchmark is a file, a name and a line here.
BENCHMARKS: dict[str, Callable[[Settings], list[Row]]] = {
    "nearest-codes": nearest_codes.measure,
    "train-step": train_step.measure,
    "encode": autoencoding.measure_encoding,
    "decode": autoencoding.measure_decoding,
    "sampling": sampling.measure,
    "prior-step": prior_step.measure,
    "codes-reading": codes_reading.measure,
    "rounded-weights": rounded_weights.measure,
}


def benchmark(
    what: Literal[
        "nearest-codes", "train-step", "encode", "decode", "sampling", "prior-step", "codes-reading", "rounded-weights"
    ],
    taming: str | None = None,
    llamagen: str | None = None,
    compile: bool = False,
    threads: int = 0,
    repeats: int = 9,
    prior: str | None = None,
    codes: str | None = None,
    output: str | None = None,
) -> None:
    """Time a part of the project beside other ways of computing the same, and print a table.

    All of them run in turn, again and again; a ratio is the median over these rounds of the first one's time by theirs,
    so that a machine that slows down for a while slows down both.

    Args:
        what: "nearest-codes": the nearest code of each feature; "train-step": a step of stage one at 128x128;
            "encode", "decode": images of 256x256 to codes, f16, and back;
            "prior-step": a step of stage two, 12 layers x 512, 4 x 256 codes; "codes-reading": shuffled
            rows of a code data set;
            "sampling": codes of images of a class, with guidance; "rounded-weights": held-out cross-entropy of a prior
            whose weights are rounded to 16 and 8 bits (no times).
        taming: folder of a clone of https://github.com/CompVis/taming-transformers, to run its own code beside ours.
        llamagen: folder of a clone of https://github.com/FoundationVision/LlamaGen, likewise.
        compile: time ours compiled as well; compiling takes minutes.
        threads: of the CPU; 0 leaves torch's own choice.
        repeats: rounds that a median is taken over.
        prior: of "rounded-weights": folder of a prior.
        codes: and of the codes that it was trained on.
        output: JSON file for the machine, the settings and the rows; none writes no file.
    """
    if threads:
        torch.set_num_threads(threads)
    settings = Settings(what, taming, llamagen, compile, repeats, prior, codes)
    print(machine())
    print(f"medians of {repeats} rounds")
    rows = BENCHMARKS[what](settings)
    if output:
        write_report(output, settings, rows)
