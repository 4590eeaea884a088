"""Import a tokenizer that another project trained."""

from __future__ import annotations

from command_line import run_function

from pipelines.importing.checkpoints import import_checkpoint

if __name__ == "__main__":
    run_function(import_checkpoint)
