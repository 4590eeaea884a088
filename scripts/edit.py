"""Draw a part of a picture again."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["edit", *sys.argv[1:]])
