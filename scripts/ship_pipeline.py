"""Make the pipeline that comes with the package out of a folder of the quickstart."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["dev", "ship-pipeline", *sys.argv[1:]])
