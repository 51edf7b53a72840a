"""Runs as tables: a run's steps, methods side by side, seeds compared, our runs as rows of the paper's tables.

Methods with several seeds each are compared by the mean over the run, up to where the shortest run ends: of the
held-out results where every run has at least two, else of the training reward; every method with the first one given.
Runs of one seed are a pair; a run says its seed in its folder's name (`gpg-seed2`, `seed2/gpg`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from gpg_verl.report.paper import PaperTable
from gpg_verl.report.runs import ALPHA, GRAD_NORM, LENGTH, REWARD, SCORES, STAGES, STEP_SECONDS, VALID_SHARE, Run

EXPECTED_METRICS = (REWARD, VALID_SHARE, ALPHA, LENGTH, *STAGES.values(), STEP_SECONDS, GRAD_NORM)
LOST = ("sessions failed", "groups incomplete", "prompts truncated")  # a column where gpg/... is logged
LEAST_SECONDS = 0.01  # a stage that takes less is not shown
LEVEL = 0.95  # of every interval
SEED = re.compile(r"seed[-_=]?(\d+)", re.IGNORECASE)
Groups = dict[tuple[str | None, str], list[Run]]  # (the paper's table, row or name) → its seeds, in the order given


class Section(NamedTuple):
    """A table, its title, and notes on it."""

    title: str
    table: pd.DataFrame
    notes: Sequence[str] = ()

    def texts(self) -> pd.DataFrame:
        """The table as it is shown; what is not known is empty."""
        return self.table.map(lambda cell: cell if isinstance(cell, str) else text(cell))


class Cell(NamedTuple):
    """Our result in one column of the paper's, in %. NaN: not known."""

    mean: float
    error: float  # of one run: standard error over its questions; of several: standard deviation over the seeds
    seeds: list[float]
    k: float = np.nan  # answers a question; NaN for an average over columns
    questions: float = np.nan
    truncated: float = np.nan  # % of the answers that ran into the limit


def text(value: float | None, spec: str = ".3f", error: float | None = None) -> str:
    """Like "0.500 ± 0.050"; what is not known is empty."""
    shown = "" if pd.isna(value) else format(value, spec)
    return shown if pd.isna(error) else f"{shown} ± {error:{spec}}"


def group(runs: Sequence[Run]) -> Groups:
    found: Groups = {}
    for run in runs:
        found.setdefault((run.table, run.label), []).append(run)
    return found


# ---- one run


def training(run: Run) -> pd.DataFrame:
    """A line for each training step."""
    columns = {
        "reward": (run.column(REWARD), ".3f"),
        "valid": (run.column(VALID_SHARE), ".2f"),
        "α": (run.column(ALPHA), ".2f"),
        "length": (run.column(LENGTH), ".1f"),
    }
    for name in LOST:
        if (metric := f"gpg/{name.replace(' ', '_')}") in run.training:
            columns[name] = run.column(metric), ".0f"
    for stage, seconds in run.stages().items():
        if stage in (*STAGES, "other") or seconds.max() >= LEAST_SECONDS:
            columns[f"{stage} s"] = seconds, ".2f"
    columns["grad norm"] = run.column(GRAD_NORM), ".3g"
    shown = {name: [text(value, spec) for value in values] for name, (values, spec) in columns.items()}
    return pd.DataFrame({"step": run.training.index.map(str)} | shown)


def held_out(run: Run, title: str) -> Section:
    """The first and the last validation of each data source, with what a reader must know to read a run's tables."""
    rows, notes = [], list(run.notes)
    for (source, measure), lines in run.held_out.groupby(["source", "measure"], sort=False):
        first, last = lines.iloc[0], lines.iloc[-1]
        before, after = (f"{text(line.value, error=line.error)} (step {line.step})" for line in (first, last))
        change = [after, text(last.value - first.value, "+.3f")] if len(lines) > 1 else ["", ""]
        rows.append([source, "accuracy" if measure == "acc" else measure, before, *change, text(last.questions, ".0f")])
    if missing := [name for name in EXPECTED_METRICS if name not in run.training]:
        notes.append("not logged, left empty: " + ", ".join(missing))
    if len(bare := run.held_out[run.held_out.error.isna() & run.held_out.measure.isin(SCORES)]):
        steps = ", ".join(map(str, bare.step.unique()))
        notes.append(
            f"held-out without standard error at step {steps}: it takes all answers to two questions or more. Set "
            f"trainer.validation_data_dir={run.folder / 'validation'}; where there are "
            "several data sources, the reward function must name each answer's as data_source"
        )
    if run.validations.empty:
        notes.append("no held-out accuracy logged (val-core/<data source>/acc/mean@1)")
    columns = ["data", "measure", "before", "after", "change", "questions"]
    return Section(title, pd.DataFrame(rows, columns=columns), notes)


def summary(run: Run) -> str:
    """One line on what a run did and took."""
    if run.training.empty:
        return "no training step"
    parts = [f"steps {run.training.index[0]} to {run.training.index[-1]}"]
    if len(rewards := run.column(REWARD).dropna()):
        parts.append(f"reward {rewards.iloc[0]:.3f} → {rewards.iloc[-1]:.3f}")
    if len(seconds := run.column(STEP_SECONDS).dropna()):
        parts.append(f"{seconds.mean():.2f} s per step")
    for label, name in {  # the worker's own names, which the trainer prefixes with "actor/"
        "peak memory of a worker": "perf/max_memory_allocated_gb",
        "machine memory in use up to": "perf/cpu_memory_used_gb",
    }.items():
        if (peak := run.training.filter(regex=f"{name}$").max().max()) > 0:
            parts.append(f"{label} {peak:.1f} GB")
    return ", ".join(parts)


# ---- methods and their seeds


def accuracy(run: Run) -> pd.Series:
    """Step → the mean over the data sets of each validation."""
    return run.validations.groupby("step").value.mean()


def side_by_side(groups: Groups) -> Section:
    """Where the runs of each group stand at their last step, and what a step takes."""
    rows = []
    for (_, label), runs in groups.items():
        ends = sorted(run.training.index[-1] for run in runs if len(run.training))
        row = {"model": label, "runs": str(len(runs))}
        row["steps"] = " to ".join(dict.fromkeys(map(str, [*ends[:1], *ends[-1:]])))
        for name, spec, values in (
            ("reward, last", ".3f", [run.column(REWARD).dropna().tail(1) for run in runs]),
            ("held-out, first", ".3f", [accuracy(run).head(1) for run in runs]),
            ("held-out, last", ".3f", [accuracy(run).tail(1) for run in runs]),
            ("valid share", ".2f", [run.column(VALID_SHARE) for run in runs]),
            ("s per step", ".2f", [run.column(STEP_SECONDS) for run in runs]),
        ):
            each = pd.Series([of_run.mean() for of_run in values])
            row[name] = text(each.mean(), spec, each.std())
        rows.append(row)
    how = "±: the standard deviation over the runs of a row; held-out is the mean over the data sets"
    return Section("side by side", pd.DataFrame(rows), [how])


def seed_of(run: Run) -> int | None:
    """The seed that the run's folder names, or the one above it."""
    folder = run.folder.resolve()
    found = [SEED.search(name) for name in (run.name, folder.name, folder.parent.name)]
    return next((int(match[1]) for match in found if match), None)


def mean_between(values: pd.Series, start: float, end: float) -> float:
    """The mean from `start` to `end`, both within the points, on the straight lines between them."""
    x = np.unique([start, end, *values.index[(start < values.index) & (values.index < end)]])
    y = np.interp(x, values.index, values)
    return y[0] if start == end else np.trapezoid(y, x) / (end - start)


def half_width(values: pd.Series | pd.DataFrame) -> float | pd.Series:
    """Half of the 95 % interval of the mean (Student's t), of each column; NaN of one value."""
    from scipy import stats  # takes seconds to import

    return stats.t.ppf((1 + LEVEL) / 2, values.count() - 1) * values.sem()


def paired_p(differences: pd.Series) -> float:
    """Two-sided p of a paired t test, of the differences of at least two pairs."""
    from scipy import stats

    if differences.std() == 0:  # the same in every pair
        return float(differences.iloc[0] == 0)
    return stats.ttest_1samp(differences, 0).pvalue


def compare(groups: Groups) -> Section | None:
    """A line for each method, by step and by second, with 95 % intervals, and the tests against the first method. None
    where no two methods have two runs each.
    """
    several = {label: runs for (_, label), runs in groups.items() if len(runs) > 1}
    if len(several) < 2:
        return None
    runs, first = [run for own in several.values() for run in own], next(iter(several))
    held_out = all(len(accuracy(run)) > 1 for run in runs)
    notes, lines = [], []
    if not held_out and any("gpg/prompts_refilled" in run.steps for run in runs):
        notes.append("with β_th the training reward is that of chosen groups: compare held-out results instead")
    for by in ("step", "second"):
        curves = [accuracy(run) if held_out else run.column(REWARD).dropna() for run in runs]
        if by == "second":
            curves = [c.set_axis(run.seconds().reindex(c.index)) for c, run in zip(curves, runs, strict=True)]
        start, end = max(c.index.min() for c in curves), min(c.index.max() for c in curves)
        if not start <= end:  # NaN where there is none
            notes.append(f"not compared by {by}: a run did not log it, or ends before another's first result")
            continue
        notes.append(f"by {by}: the mean from {start:,.0f} to {end:,.0f}")
        means = pd.DataFrame({"label": [run.label for run in runs], "seed": [seed_of(run) for run in runs]})
        means["mean"] = [mean_between(values, start, end) for values in curves]
        # A run that names no seed, or another's of its method, is in no pair.
        known = means.dropna(subset="seed").drop_duplicates(["label", "seed"], keep=False)
        by_seed = known.pivot(index="seed", columns="label", values="mean").reindex(columns=list(several))
        for label, own in means.groupby("label", sort=False)["mean"]:
            line = {"model": label, "by": by, "runs": str(len(own)), "mean": own.mean(), "±": half_width(own)}
            pairs = (by_seed[label] - by_seed[first]).dropna()
            if label != first and len(pairs) > 1:
                line |= {"pairs": str(len(pairs)), "difference": pairs.mean(), "± ": half_width(pairs)}
                line["p"] = paired_p(pairs)
            lines.append(line)
    table = pd.DataFrame(lines, columns=["model", "by", "runs", "mean", "±", "pairs", "difference", "± ", "p"])
    ordered = table.p.dropna().sort_values()
    table["p, Holm"] = (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1)
    tests = table.dropna(subset="p")
    untested = [label for label in several if label not in {first, *tests.model}]
    notes += [f"{label}: fewer than two seeds that {first} has too, so no paired test" for label in untested]
    if len(tests):
        beyond = [f"{t.model} by {t.by} {t.difference:+.3f}" for t in tests[tests["p, Holm"] < 1 - LEVEL].itertuples()]
        notes.append(
            f"±: 95 % interval (Student's t). difference: from {first}, paired by seed. p: paired t test, without and "
            f"with Holm's correction for the {len(tests)} comparisons"
        )
        notes.append("beyond noise: " + ("; ".join(beyond) or "no difference in this table"))
    measure = "held-out result" if held_out else "training reward"
    return Section(f"{measure}, mean over the run", table, notes)


# ---- beside the paper


def cells(table: PaperTable, runs: Sequence[Run]) -> dict[str, Cell]:
    """Header → our result, over the runs that have one; with the table's average, where there is one."""

    def cell(seeds: Sequence[float], error_of_one: float, **more: float) -> Cell:
        return Cell(np.mean(seeds), np.std(seeds, ddof=1) if len(seeds) > 1 else error_of_one, list(seeds), **more)

    found: dict[str, Cell] = {}
    for header, column in table.columns.items():
        if lines := [run.results[column] for run in runs if column in run.results]:
            more = {"k": lines[0].k, "questions": lines[0].questions}
            more["truncated"] = 100 * np.mean([line.truncated for line in lines])
            found[header] = cell([100 * line.value for line in lines], 100 * lines[0].error, **more)
    if not table.average or len(found) < len(table.columns):
        return found
    if table.run_per_column:
        rows = [[(one.mean, one.error) for one in found.values()]]
    else:
        complete = [[run.results.get(column) for column in table.columns.values()] for run in runs]
        rows = [[(100 * line.value, 100 * line.error) for line in row] for row in complete if None not in row]
    if not rows:
        return found
    weights = np.array(table.weights or [1] * len(found))[:, None] / sum(table.weights or [1] * len(found))
    weighted = weights * np.array(rows)  # (runs, columns, value and error)
    return {table.average: cell(weighted[..., 0].sum(axis=1), np.linalg.norm(weighted[0, :, 1]))} | found


def beside_paper(table: PaperTable, groups: Groups) -> Section:
    """Each row as the paper has it, below it ours, the difference, and the share of truncated answers."""
    spec, notes, lines = f".{table.decimals}f", [table.note] if table.note else [], []
    for row, paper in table.rows.items():
        lines.append([row, "paper", *(text(value, spec) or "-" for value in paper.values())])
        if not (runs := groups.get((table.name, row))):
            continue
        found = cells(table, runs)
        ours = [found.get(header, Cell(np.nan, np.nan, [])) for header in paper]
        seeds = max((len(cell.seeds) for cell in ours), default=1) if table.run_per_column else len(runs)
        who = "ours" if seeds == 1 else f"ours, {seeds} seeds"
        if any(run.smoke for run in runs):
            who += ", SMOKE"
            notes.append(f"{row}: SMOKE=1, a tiny model and tiny data: its numbers say nothing beside the paper's")
        differences = np.subtract([cell.mean for cell in ours], np.array(list(paper.values()), dtype=float))
        truncated = [text(cell.truncated, ".1f") for cell in ours]
        lines.append(["", who, *(text(cell.mean, spec, cell.error) for cell in ours)])
        lines.append(["", "difference", *(text(value, f"+{spec}") for value in differences)])
        if any(truncated):
            lines.append(["", "truncated", *(share and f"{share} %" for share in truncated)])
        measured = {header: cell for header, cell in found.items() if header in table.columns}
        remarks = {
            "no result, left empty": [f"{h} ({column})" for h, column in table.columns.items() if h not in found],
            f"not all of its {seeds} runs have a result, but": [
                f"{h} {len(cell.seeds)}" for h, cell in measured.items() if len(cell.seeds) < seeds
            ],
            "answers a question": [
                f"{h} {cell.k} ({text(cell.questions, '.0f')} questions)" for h, cell in measured.items()
            ],
        }
        notes += [f"{row}: {remark}: {', '.join(headers)}" for remark, headers in remarks.items() if headers]
        notes += [f"{row}: {note}" for run in runs for note in run.notes if note.startswith("evaluation")]
    if absent := [row for row in table.rows if (table.name, row) not in groups]:
        notes.append(f"no run of ours: {'; '.join(absent)}")
    notes.append("±: of one run the standard error over its questions, of several the standard deviation over seeds")
    shown = pd.DataFrame(lines, columns=["model", "", *table.headers])
    return Section(f"{table.name}: {table.title} (%)", shown, notes)
