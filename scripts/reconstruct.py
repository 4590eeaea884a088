"""Reconstruct images with a tokenizer, beside their originals, with scores."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["reconstruct", *sys.argv[1:]])
