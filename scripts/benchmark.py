"""Time a part of the project beside another way of computing the same."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["dev", "benchmark", *sys.argv[1:]])
