"""Put the table of a comparison of quantizers into a page of the docs."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["dev", "write-comparison", *sys.argv[1:]])
