"""Check a code data set against its manifest and, by sample, against the tokenizer that made it."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["verify-codes", *sys.argv[1:]])
