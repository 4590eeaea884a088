"""Time a part of the project beside another way of computing the same."""

from __future__ import annotations

from codegrid.pipelines.benchmarks import benchmark
from codegrid.pipelines.commands import run_function

if __name__ == "__main__":
    run_function(benchmark)
