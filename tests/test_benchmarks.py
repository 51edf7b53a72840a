"""Benchmarks that read GPG's own code part by part still run: in small, as test_readme.py asks them for --help only."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import run_python

BENCHMARKS = Path(__file__).parents[1] / "examples/benchmark"
REFILL = ["--prompts", "8", "--shares", "0.5", "--thresholds", "1", "--seeds", "2"]


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("driver.py", ["--rows", "64", "--tokens", "16", "--repeat", "1"], "selection, balancing, bookkeeping"),
        ("refill.py", REFILL, "DAPO       generated "),
    ],
)
def test_it_runs_in_small(script, arguments, says, tmp_path):
    done = run_python(str(BENCHMARKS / script), *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert says in done.stdout
