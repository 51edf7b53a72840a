"""Means of a few runs with their intervals, and pairs of runs compared: Student's t, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class Interval:
    """A mean, and half the width of its 95 % interval; None of one value."""

    mean: float
    half: float | None
    n: int


@dataclass(frozen=True)
class Paired:
    """Differences of pairs: their mean and interval, and how likely one so far from 0 is where there is none."""

    interval: Interval
    p: float | None  # two-sided; None of one pair

    @property
    def beyond_noise(self) -> bool:
        return self.p is not None and self.p < 1 - LEVEL


def student_cdf(t: float, df: int) -> float:
    """P(T ≤ t) of Student's t with `df` degrees of freedom; the finite sum for a whole number of them
    (Abramowitz and Stegun 26.7.3 and 26.7.4).
    """
    θ = math.atan2(t, math.sqrt(df))
    odd = df % 2
    term = total = math.cos(θ) if odd and df > 1 else 0.0 if odd else 1.0
    for k in range(2 + odd, df, 2):
        term *= (k - 1) / k * math.cos(θ) ** 2
        total += term
    within = 2 / math.pi * (θ + math.sin(θ) * total) if odd else math.sin(θ) * total
    return (1 + within) / 2


def student_quantile(p: float, df: int) -> float:
    """t with P(T ≤ t) = p, for p in (0.5, 1)."""
    low, high = 0.0, 1.0
    while student_cdf(high, df) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, df) < p else (low, middle)
    return high


def interval(values: Sequence[float]) -> Interval:
    n = len(values)
    half = student_quantile((1 + LEVEL) / 2, n - 1) * stdev(values) / math.sqrt(n) if n > 1 else None
    return Interval(fmean(values), half, n)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """ours − theirs, pair by pair, with the paired t test."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    found = interval(differences)
    if found.half is None:
        return Paired(found, None)
    error = stdev(differences) / math.sqrt(found.n)
    if error == 0:
        return Paired(found, 1.0 if found.mean == 0 else 0.0)
    return Paired(found, 2 * (1 - student_cdf(abs(found.mean) / error, found.n - 1)))


def detectable(found: Interval, pairs: int | None = None, comparisons: int = 1, power: float = 0.8) -> float | None:
    """The difference that a paired t test sees with this power, to first order, where pairs differ as much as in
    `found`; with another number of pairs, where runs are planned; at the level that Holm's method asks of the smallest
    of several p. None where one pair says nothing of how they differ.
    """
    if found.half is None:
        return None
    pairs = pairs or found.n
    deviation = found.half * math.sqrt(found.n) / student_quantile((1 + LEVEL) / 2, found.n - 1)
    beyond = student_quantile(1 - (1 - LEVEL) / 2 / comparisons, pairs - 1) + student_quantile(power, pairs - 1)
    return beyond * deviation / math.sqrt(pairs)


def holm(ps: Sequence[float]) -> list[float]:
    """Each p for all comparisons together: whoever calls those below 0.05 different is wrong in any of them at most
    once in twenty times (Holm's step-down method).
    """
    adjusted, worst = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = worst
    return adjusted
