"""What is measured against another way of doing it, in one run, as a ratio: one file for each thing measured."""

from __future__ import annotations

from typing import Any

from codegrid.errors import require
from codegrid.pipelines.benchmarks.autoencoding import Decode, Encode
from codegrid.pipelines.benchmarks.codes_reading import CodesReading
from codegrid.pipelines.benchmarks.few_steps import FewSteps
from codegrid.pipelines.benchmarks.nearest_codes import NearestCodes
from codegrid.pipelines.benchmarks.options import Benchmark
from codegrid.pipelines.benchmarks.prior_step import PriorStep
from codegrid.pipelines.benchmarks.rounded_weights import RoundedWeights
from codegrid.pipelines.benchmarks.sampling import Sampling
from codegrid.pipelines.benchmarks.tokenizing import Tokenizing
from codegrid.pipelines.benchmarks.train_step import TrainStep

_OF_PRIORS = (Sampling, FewSteps, PriorStep, CodesReading, RoundedWeights)
_KINDS = (NearestCodes, TrainStep, Encode, Decode, Tokenizing, *_OF_PRIORS)
BENCHMARKS: dict[str, type[Benchmark]] = {kind.name: kind for kind in _KINDS}


def benchmark(name: str, **options: Any) -> None:
    """Time a part of the project beside other ways of computing the same, and print a table.

    Args:
        name: one of `BENCHMARKS`.
        options: the fields of its class.

    Raises:
        CodegridError: `name` is none of them, or an option's value is out of its range.
    """
    require(name in BENCHMARKS, f"There is no benchmark {name!r}.", f"It is one of {', '.join(BENCHMARKS)}.")
    BENCHMARKS[name](**options).run()
