"""Score a tokenizer's reconstructions, or the samples of a pipeline against real images."""

from __future__ import annotations

from codegrid.pipelines.commands import run_functions
from codegrid.pipelines.evaluation.generation import evaluate_generation
from codegrid.pipelines.evaluation.tokenizer import evaluate_tokenizer

if __name__ == "__main__":
    run_functions({"reconstruction": evaluate_tokenizer, "generation": evaluate_generation}, __doc__)
