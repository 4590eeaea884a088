"""Export a tokenizer as diffusers' VQModel."""

from __future__ import annotations

from codegrid.pipelines.commands import run_function
from codegrid.pipelines.importing.checkpoints import export_diffusers

if __name__ == "__main__":
    run_function(export_diffusers)
