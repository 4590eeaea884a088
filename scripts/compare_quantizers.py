"""Train one small tokenizer per quantizer, all alike, and write a table and a sheet of reconstructions."""

from __future__ import annotations

from command_line import run_function

from pipelines.comparison import compare_quantizers

if __name__ == "__main__":
    run_function(compare_quantizers)
