"""Encode images into a code data set. To go on after a stop, run the same command again."""

from __future__ import annotations

from command_line import run_config

from pipelines.tokenization import TokenizationConfig, tokenize_dataset

if __name__ == "__main__":
    run_config(TokenizationConfig, tokenize_dataset, __doc__)
