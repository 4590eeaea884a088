"""Compare an imported tokenizer with its project's own code."""

from __future__ import annotations

from codegrid.pipelines.commands import run_function
from codegrid.pipelines.importing.parity import import_parity

if __name__ == "__main__":
    run_function(import_parity)
