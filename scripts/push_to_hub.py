"""Upload a tokenizer, prior, pipeline or code data set to the Hub."""

from __future__ import annotations

from codegrid.pipelines.commands import run_function
from codegrid.pipelines.publishing.push import push_to_hub

if __name__ == "__main__":
    run_function(push_to_hub)
