"""The whole job on the embedded Fashion-MNIST images."""

from __future__ import annotations

from command_line import run_function

from pipelines.quickstart import quickstart

if __name__ == "__main__":
    run_function(quickstart)
