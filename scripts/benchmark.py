"""Time a part of the project beside another way of computing the same."""

from __future__ import annotations

from command_line import run_function

from pipelines.benchmarks import benchmark

if __name__ == "__main__":
    run_function(benchmark)
