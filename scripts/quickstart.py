"""The whole job on the embedded Fashion-MNIST images."""

from __future__ import annotations

from codegrid.pipelines.commands import run_function
from codegrid.pipelines.quickstart import quickstart

if __name__ == "__main__":
    run_function(quickstart)
