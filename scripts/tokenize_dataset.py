"""Encode images into a code data set. To go on after a stop, run the same command again."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["tokenize-dataset", *sys.argv[1:]])
