"""Put the table of a comparison of quantizers into a page of the docs."""

from __future__ import annotations

from command_line import run_function

from pipelines.comparison.report import write_page

if __name__ == "__main__":
    run_function(write_page)
