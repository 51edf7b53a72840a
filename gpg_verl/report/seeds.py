"""Several methods with several seeds each: by step, by response and by second, with intervals and paired tests.

Compared is the mean over the run, up to where the shortest run ends: of the held-out results where every run has at
least two, else of the training reward. Every method is compared with the first one given. Runs of one seed are a pair;
a run says its seed in its folder's name (`gpg-seed2`, `seed2/gpg`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from gpg_verl.report.compare import Group
from gpg_verl.report.metrics import REWARD, Run
from gpg_verl.report.statistics import Interval, detectable, holm, interval, paired

Points = list[tuple[float, float]]  # (what was spent, value), ascending
AXES = {"step": "by step", "responses": "by response generated", "seconds": "by second"}
SEED = re.compile(r"seed[-_=]?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Comparison:
    """A method against the first one, paired by seed."""

    label: str
    against: str
    axis: str
    seeds: list[int]  # that both have
    difference: Interval
    p: float | None
    p_holm: float | None  # for all comparisons of the report together


@dataclass(frozen=True)
class Compared:
    """What is compared, the means of each method by axis, and the tests."""

    measure: str
    means: dict[tuple[str, str], Interval]  # (method, axis) → of its runs
    comparisons: list[Comparison]
    notes: list[str]


def seed_of(run: Run) -> int | None:
    """The seed that the run's folder names, or the one above it."""
    folder = run.folder.resolve()
    found = [SEED.search(name) for name in (run.name, folder.name, folder.parent.name)]
    return next((int(match[1]) for match in found if match), None)


def responses(values: dict[str, float]) -> float | None:
    """Responses that a step generated; None where its metrics do not tell."""
    if values.get("gpg/groups") and "gpg/B" in values:
        prompts = values.get("gpg/prompts_generated", values["gpg/groups"])  # β_th generates more than it uses
        return prompts * values["gpg/B"] / values["gpg/groups"]
    length = values.get("prompt_length/mean", 0.0) + values.get("response_length/mean", 0.0)
    if length and "perf/total_num_tokens" in values:  # other estimators
        return round(values["perf/total_num_tokens"] / length)
    return None


def spent(run: Run, axis: str) -> dict[int, float]:
    """Step → steps, responses or seconds until its end; empty where that was not logged."""
    if axis == "step":
        return {step: float(step) for step in run.steps}
    if axis == "seconds":
        return {step: 3600 * hours for step, hours in run.hours().items()}
    found, total = {}, 0.0
    for step, values in run.steps.items():
        if step in run.training_steps:
            generated = responses(values)
            if generated is None:
                return {}
            total += generated
        found[step] = total
    return found


def reward_points(run: Run, axis: str) -> Points:
    at = spent(run, axis)
    return [(at[s], run.steps[s][REWARD]) for s in run.training_steps if s in at and REWARD in run.steps[s]]


def held_out_points(run: Run, axis: str) -> Points:
    """The mean over the data sets of each validation."""
    at = spent(run, axis)
    steps = dict.fromkeys(result.step for result in run.held_out if result.step in at)
    return [(at[s], fmean(result.value for result in run.held_out if result.step == s)) for s in steps]


MEASURES: dict[str, Callable[[Run, str], Points]] = {
    "training reward": reward_points,
    "held-out result": held_out_points,
}


def value_at(points: Points, x: float) -> float:
    """On the straight lines between the points; x is within them."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y1
    return points[-1][1]


def mean_between(points: Points, start: float, end: float) -> float:
    """The mean value from `start` to `end`, both within the points."""
    if start == end:
        return value_at(points, end)
    inside = [(x, y) for x, y in points if start < x < end]
    line = [(start, value_at(points, start)), *inside, (end, value_at(points, end))]
    whole = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(line))
    return whole / (end - start)


def mean_curve(runs: Sequence[Run], measure: str, axis: str) -> list[tuple[float, Interval]]:
    """Where all runs are, their mean and interval."""
    lines = [line for run in runs if (line := MEASURES[measure](run, axis))]
    if not lines:
        return []
    start, end = max(line[0][0] for line in lines), min(line[-1][0] for line in lines)
    xs = sorted({x for line in lines for x, _ in line if start <= x <= end})
    return [(x, interval([value_at(line, x) for line in lines])) for x in xs]


def compare(groups: Sequence[Group]) -> Compared | None:
    """None where no two methods have two runs each."""
    groups = [g for g in groups if len(g.runs) > 1]
    if len(groups) < 2:
        return None
    runs = [run for g in groups for run in g.runs]
    measure = "held-out result" if all(len(held_out_points(run, "step")) > 1 for run in runs) else "training reward"
    read, notes = MEASURES[measure], []
    if measure == "training reward" and any("gpg/prompts_refilled" in v for r in runs for v in r.steps.values()):
        notes.append("with β_th the training reward is that of chosen groups: compare held-out results instead")
    means: dict[tuple[str, str], Interval] = {}
    found: list[Comparison] = []
    for axis, how in AXES.items():
        lines = {id(run): read(run, axis) for run in runs}
        if not all(lines.values()):
            notes.append(f"not compared {how}: not every run logged it")
            continue
        start = max(line[0][0] for line in lines.values())
        end = min(line[-1][0] for line in lines.values())
        if end < start:
            notes.append(f"not compared {how}: a run ends before another has its first {measure}")
            continue
        notes.append(f"{how}: the mean from {start:,.0f} to {end:,.0f}")
        value = {key: mean_between(line, start, end) for key, line in lines.items()}
        for g in groups:
            means[g.label, axis] = interval([value[id(run)] for run in g.runs])
        for g in groups[1:]:
            pairs = _pairs(g, groups[0])
            if len(pairs) > 1:
                test = paired(*([value[id(pair[i])] for pair in pairs.values()] for i in (0, 1)))
                found.append(Comparison(g.label, groups[0].label, axis, list(pairs), test.interval, test.p, None))
    for g in groups[1:]:
        if len(_pairs(g, groups[0])) < 2:
            notes.append(f"{g.label}: fewer than two seeds that {groups[0].label} has too, so no paired test")
    corrected = holm([c.p for c in found])
    found = [Comparison(**(vars(c) | {"p_holm": p})) for c, p in zip(found, corrected, strict=True)]
    return Compared(measure, means, found, notes)


def _pairs(ours: Group, theirs: Group) -> dict[int, tuple[Run, Run]]:
    """Seed → the run of each; none where a folder does not name its seed, or two name the same."""
    by_seed = [{seed_of(run): run for run in g.runs} for g in (ours, theirs)]
    if any(None in of or len(of) < len(g.runs) for of, g in zip(by_seed, (ours, theirs), strict=True)):
        return {}
    return {seed: (by_seed[0][seed], by_seed[1][seed]) for seed in sorted(by_seed[0].keys() & by_seed[1].keys())}


def compared_cells(compared: Compared) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each method's mean by axis, its difference from the first, and p."""
    header = ["model", "runs"]
    axes = [axis for axis in AXES if any(key[1] == axis for key in compared.means)]
    for axis in axes:
        header += [AXES[axis], "difference", "p"]
    rows = []
    for label in dict.fromkeys(label for label, _ in compared.means):
        row = [label, str(next(mean.n for key, mean in compared.means.items() if key[0] == label))]
        for axis in axes:
            test = next((c for c in compared.comparisons if (c.label, c.axis) == (label, axis)), None)
            row += [_with_half(compared.means[label, axis], ".3f")]
            row += ["", ""] if test is None else [_with_half(test.difference, "+.3f"), _p(test.p_holm)]
        rows.append(row)
    return header, rows


def compared_notes(compared: Compared) -> list[str]:
    tests = compared.comparisons
    found = list(compared.notes)
    if tests:
        seeds = sorted({len(c.seeds) for c in tests})
        found.append(
            f"±: 95 % interval (Student's t). difference: from {tests[0].against}, paired by seed "
            f"({' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} pairs). p: paired t test, after Holm's "
            f"correction for the {len(tests)} comparisons"
        )
        found.append(f"could be seen, with power 0.8 and for the smallest p: {_detectable(tests)}")
        beyond = [c for c in tests if c.p_holm < 0.05]
        found.append(
            "beyond noise: "
            + (
                "; ".join(f"{c.label} {AXES[c.axis]} {c.difference.mean:+.3f}" for c in beyond)
                or "no difference in this table"
            )
        )
    return found


def _detectable(tests: Sequence[Comparison]) -> str:
    """The smallest difference that each axis's test of each method would have seen, as a range over the methods."""
    found = {}
    for axis in dict.fromkeys(c.axis for c in tests):
        sizes = sorted(detectable(c.difference, comparisons=len(tests)) for c in tests if c.axis == axis)
        found[AXES[axis]] = " to ".join(dict.fromkeys(f"{size:.3f}" for size in (sizes[0], sizes[-1])))
    return "; ".join(f"{how} {sizes}" for how, sizes in found.items())


def compared_json(compared: Compared) -> dict:
    means = [{"row": label, "axis": axis, **vars(mean)} for (label, axis), mean in compared.means.items()]
    tests = [vars(c) | {"difference": vars(c.difference)} for c in compared.comparisons]
    return {"measure": compared.measure, "means": means, "comparisons": tests, "notes": compared_notes(compared)}


def _p(p: float) -> str:
    return "< 0.01" if p < 0.01 else f"{p:.2f}"


def _with_half(mean: Interval, spec: str) -> str:
    return format(mean.mean, spec) + ("" if mean.half is None else f" ± {mean.half:.3f}")
