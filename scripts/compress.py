"""Compress pictures to files of a few dozen bytes."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["compress", *sys.argv[1:]])
