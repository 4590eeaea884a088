"""Reconstruct images with a tokenizer, beside their originals, with scores."""

from __future__ import annotations

from codegrid.pipelines.commands import run_function
from codegrid.pipelines.evaluation.reconstruct import reconstruct

if __name__ == "__main__":
    run_function(reconstruct)
