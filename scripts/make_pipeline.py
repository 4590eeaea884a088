"""Put a tokenizer and a prior together into a pipeline's folder."""

from __future__ import annotations

from codegrid.pipelines.commands import run_function
from codegrid.pipelines.generation.make import make_pipeline

if __name__ == "__main__":
    run_function(make_pipeline)
