"""Serve a page to sample from a pipeline, and to look at codes and change them."""

from __future__ import annotations

from codegrid.pipelines.commands import run_function
from codegrid.pipelines.demo.page import run_demo

if __name__ == "__main__":
    run_function(run_demo)
