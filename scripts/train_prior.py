"""Train a prior on a code data set (stage two). To resume, run the same command again."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["train-prior", *sys.argv[1:]])
