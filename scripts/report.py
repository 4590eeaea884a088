"""A run as one HTML page that needs no network."""

from __future__ import annotations

from codegrid.pipelines.commands import run_function
from codegrid.pipelines.report.report import report

if __name__ == "__main__":
    run_function(report)
