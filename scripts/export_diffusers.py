"""Export a tokenizer as diffusers' VQModel."""

from __future__ import annotations

from command_line import run_function

from pipelines.importing.checkpoints import export_diffusers

if __name__ == "__main__":
    run_function(export_diffusers)
