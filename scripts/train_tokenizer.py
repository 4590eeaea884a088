"""Train a tokenizer (stage one). To resume, run the same command again."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["train-tokenizer", *sys.argv[1:]])
