"""A run as one HTML page that needs no network."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
