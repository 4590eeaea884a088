"""Sample images from a pipeline into a folder."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["generate", *sys.argv[1:]])
