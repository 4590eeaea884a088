"""Serve a page to sample from a pipeline, and to look at codes and change them."""

from __future__ import annotations

from command_line import run_function

from pipelines.demo_page import run_demo

if __name__ == "__main__":
    run_function(run_demo)
