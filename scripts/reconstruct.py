"""Reconstruct images with a tokenizer, beside their originals, with scores."""

from __future__ import annotations

from command_line import run_function

from pipelines.reconstruction import reconstruct

if __name__ == "__main__":
    run_function(reconstruct)
