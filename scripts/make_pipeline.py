"""Put a tokenizer and a prior together into a pipeline's folder."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["make-pipeline", *sys.argv[1:]])
