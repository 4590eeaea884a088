"""Serve a page to sample from a pipeline, and to look at codes and change them."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
