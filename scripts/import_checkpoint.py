"""Import a tokenizer that another project trained."""

from __future__ import annotations

from codegrid.pipelines.commands import run_function
from codegrid.pipelines.importing.checkpoints import import_checkpoint

if __name__ == "__main__":
    run_function(import_checkpoint)
