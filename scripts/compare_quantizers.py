"""Train one small tokenizer per quantizer, all alike, and write a table and a sheet of reconstructions."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["dev", "compare-quantizers", *sys.argv[1:]])
