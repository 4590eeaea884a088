"""The benchmarks' command: that it runs, and that what it compares gives the same."""

from __future__ import annotations

from pipelines import benchmarks


def test_the_nearest_codes_are_compared_with_all_distances_at_once(monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "_SHAPES", ((30, 700, 3), (5, 20, 8)))
    benchmarks.benchmark("nearest-codes", repeats=1)
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:3] for row in rows] == [["30", "700", "3"], ["5", "20", "8"]]
    assert all(row.endswith("100.00%") for row in rows)
