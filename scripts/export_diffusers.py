"""Export a tokenizer as diffusers' VQModel."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["export-diffusers", *sys.argv[1:]])
