"""Train one small tokenizer per quantizer, all alike, and write a table and a sheet of reconstructions."""

from __future__ import annotations

from codegrid.pipelines.commands import run_function
from codegrid.pipelines.comparison import compare_quantizers

if __name__ == "__main__":
    run_function(compare_quantizers)
