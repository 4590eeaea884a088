"""Make a code data set of integer sequences that another program made."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["import-codes", *sys.argv[1:]])
