"""Say what is read of pictures, and what the tokenizer presets would make of them."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["look", *sys.argv[1:]])
