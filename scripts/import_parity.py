"""Compare an imported tokenizer with its project's own code."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["dev", "import-parity", *sys.argv[1:]])
