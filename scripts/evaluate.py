"""Score a tokenizer's reconstructions, or the samples of a pipeline against real images."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
