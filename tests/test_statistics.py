"""Intervals and paired tests, against tables of Student's t."""

from __future__ import annotations

import pytest

from gpg_verl.report.statistics import detectable, holm, interval, paired, student_cdf, student_quantile


@pytest.mark.parametrize(
    ("df", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (10, 2.2281), (29, 2.0452), (120, 1.9799)],
)
def test_quantiles_of_the_table(df, quantile):
    assert student_quantile(0.975, df) == pytest.approx(quantile, abs=1e-4)
    assert student_cdf(quantile, df) == pytest.approx(0.975, abs=1e-5)
    assert student_cdf(-quantile, df) == pytest.approx(0.025, abs=1e-5)


def test_interval():
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.half, found.n) == pytest.approx((2.0, 2.4841, 3), abs=1e-3)
    assert interval([1.0]).half is None


@pytest.mark.parametrize(
    ("ours", "theirs", "mean", "p"),
    [
        ([1.0, 2.0, 3.0], [0.0, 1.0, 2.5], 5 / 6, 0.0377),
        ([1.0, 2.0, 3.0], [2.0, 1.0, 3.0], 0.0, 1.0),
        ([1.0, 2.0], [1.0, 2.0], 0.0, 1.0),  # the same in every pair
        ([2.0, 3.0], [1.0, 2.0], 1.0, 0.0),  # the same difference in every pair
        ([1.0], [0.0], 1.0, None),
    ],
)
def test_paired(ours, theirs, mean, p):
    found = paired(ours, theirs)
    assert found.interval.mean == pytest.approx(mean)
    assert found.p == (None if p is None else pytest.approx(p, abs=1e-4))


@pytest.mark.parametrize(("pairs", "size"), [(5, 1.68), (10, 1.00), (20, 0.66)])  # deviations, from tables
def test_detectable(pairs, size):
    pilot = interval([-0.1, 0.0, 0.1])  # a deviation of 0.1
    assert detectable(pilot, pairs) == pytest.approx(0.1 * size, rel=0.02)
    assert detectable(pilot, pairs, comparisons=3) > detectable(pilot, pairs)
    assert detectable(interval([0.1])) is None


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
