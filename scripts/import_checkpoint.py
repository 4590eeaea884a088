"""Import a tokenizer that another project trained."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["import-checkpoint", *sys.argv[1:]])
