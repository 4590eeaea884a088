"""Export a tokenizer as ONNX files."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["export-onnx", *sys.argv[1:]])
