"""Search a preset's fields at equal seconds or steps by successive halving, and write a table and a chart."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["dev", "search-recipe", *sys.argv[1:]])
