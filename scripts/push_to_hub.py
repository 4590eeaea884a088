"""Upload a tokenizer, prior, pipeline or code data set to the Hub."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["push-to-hub", *sys.argv[1:]])
