"""Encode images into a code data set. To go on after a stop, run the same command again."""

from __future__ import annotations

from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.commands import run_config

if __name__ == "__main__":
    run_config(TokenizationConfig, tokenize_dataset, __doc__)
