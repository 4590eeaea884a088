"""Write the pictures of compressed files."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["decompress", *sys.argv[1:]])
