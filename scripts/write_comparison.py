"""Put the table of a comparison of quantizers into a page of the docs."""

from __future__ import annotations

from codegrid.pipelines.commands import run_function
from codegrid.pipelines.comparison.report import write_page

if __name__ == "__main__":
    run_function(write_page)
