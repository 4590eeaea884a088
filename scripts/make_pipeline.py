"""Put a tokenizer and a prior together into a pipeline's folder."""

from __future__ import annotations

from command_line import run_function

from pipelines.make_pipeline import make_pipeline

if __name__ == "__main__":
    run_function(make_pipeline)
