"""Say what a compressed file holds."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["codec-info", *sys.argv[1:]])
