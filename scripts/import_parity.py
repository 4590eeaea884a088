"""Compare an imported tokenizer with its project's own code."""

from __future__ import annotations

from command_line import run_function

from pipelines.importing.parity import import_parity

if __name__ == "__main__":
    run_function(import_parity)
