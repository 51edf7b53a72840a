"""A run as text: one row per training step, held-out accuracy before and after, one line of summary."""

from collections.abc import Sequence
from statistics import fmean, stdev

from rich import box
from rich.console import Console
from rich.table import Table

from gpg_verl.report.compare import Group, table_lines, table_notes
from gpg_verl.report.metrics import (
    ALPHA,
    GRAD_NORM,
    LEAST_SECONDS,
    LENGTH,
    PASSES,
    REWARD,
    SAVE_SECONDS,
    STAGES,
    STEP_SECONDS,
    TEST_SECONDS,
    VALID_SHARE,
    HeldOut,
    Run,
)
from gpg_verl.report.paper import PaperTable
from gpg_verl.report.seeds import Compared, compared_cells, compared_notes


def print_paper_table(table: PaperTable, groups: Sequence[Group]) -> None:
    _print_table(f"{table.name}: {table.title} (%)", table_lines(table, groups))
    for note in table_notes(table, groups):
        print(f"note: {note}")
    print()


def print_run(run: Run, title: str) -> None:
    _print_table(f"{title}: training", training_cells(run))
    if run.held_out:
        _print_table(f"{title}: held-out", held_out_cells(run))
    for note in notes(run):
        print(f"note: {note}")
    print(f"{title}: {summary(run)}\n")


def training_cells(run: Run) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the training table; a cell whose metric was not logged is empty."""
    columns = {
        "reward": _cells(run.column(REWARD), ".3f"),
        "valid": _cells(run.column(VALID_SHARE), ".2f"),
        "α": _cells(run.column(ALPHA), ".2f"),
        "length": _cells(run.column(LENGTH), ".1f"),
        **{f"{stage} s": _cells(run.column(name), ".2f") for stage, name in STAGES.items()},
        "other s": _cells(run.other_seconds(), ".2f"),
    }
    for stage, name in (PASSES | {"save": SAVE_SECONDS, "test": TEST_SECONDS}).items():
        column = run.column(name)
        if any((value or 0.0) >= LEAST_SECONDS for value in column):
            columns[f"{stage} s"] = _cells(column, ".2f")
    columns["grad norm"] = _cells(run.column(GRAD_NORM), ".3g")
    return ["step", *columns], [
        [str(step), *row] for step, *row in zip(run.training_steps, *columns.values(), strict=True)
    ]


def held_out_cells(run: Run) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the held-out table: one row per data source, its first and last validation."""
    rows = []
    for source in dict.fromkeys(result.source for result in run.held_out):
        results = [result for result in run.held_out if result.source == source]
        before, after = results[0], results[-1]
        once = before is after
        rows.append(
            [
                source,
                "accuracy" if after.kind == "acc" else "reward",
                _with_error(before),
                "" if once else _with_error(after),
                "" if once else f"{after.value - before.value:+.3f}",
                str(after.questions or ""),
            ]
        )
    return ["data", "measure", "before", "after", "change", "questions"], rows


def print_groups(groups: Sequence[Group]) -> None:
    _print_table("side by side", group_cells(groups))
    if any(len(g.runs) > 1 for g in groups):
        print(f"note: {SPREAD}")
    print()


def print_compared(compared: Compared) -> None:
    _print_table(f"{compared.measure}, mean over the run", compared_cells(compared))
    for note in compared_notes(compared):
        print(f"note: {note}")
    print()


SPREAD = "±: the standard deviation over the runs of a row; held-out is the mean over the data sets"


def group_cells(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each group: where its runs stand at their last step, and what a step takes."""

    def spread(values: list[float | None], spec: str) -> str:
        known = _present(values)
        if not known:
            return ""
        return format(fmean(known), spec) + (f" ± {stdev(known):{spec}}" if len(known) > 1 else "")

    def held_out(run: Run, first: bool) -> float | None:
        steps = [result.step for result in run.held_out]
        step = (min(steps) if first else max(steps)) if steps else None
        return fmean(result.value for result in run.held_out if result.step == step) if steps else None

    rows = []
    for g in groups:
        steps = sorted({run.training_steps[-1] for run in g.runs if run.training_steps})
        rewards = [_present(run.column(REWARD)) for run in g.runs]
        shares, seconds = ([_present(run.column(name)) for run in g.runs] for name in (VALID_SHARE, STEP_SECONDS))
        rows.append(
            [
                g.label,
                str(len(g.runs)),
                " to ".join(map(str, dict.fromkeys([steps[0], steps[-1]]))) if steps else "",
                spread([column[-1] if column else None for column in rewards], ".3f"),
                spread([held_out(run, first=True) for run in g.runs], ".3f"),
                spread([held_out(run, first=False) for run in g.runs], ".3f"),
                spread([fmean(column) if column else None for column in shares], ".2f"),
                spread([fmean(column) if column else None for column in seconds], ".2f"),
            ]
        )
    header = ["model", "runs", "steps", "reward, last", "held-out, first", "last", "valid share", "s per step"]
    return header, rows


def notes(run: Run) -> list[str]:
    """What a reader must know to read the tables right."""
    found = list(run.notes)
    if run.missing:
        found.append("not logged, left empty: " + ", ".join(run.missing))
    reasons: dict[str, list[int]] = {}
    for result in run.held_out:
        if result.why_no_error:
            reasons.setdefault(result.why_no_error, []).append(result.step)
    for reason, steps in reasons.items():
        which = ", ".join(str(step) for step in dict.fromkeys(steps))
        found.append(f"held-out without standard error at step {which}: {reason}")
    if not run.held_out:
        found.append("no held-out accuracy logged (val-core/<data source>/acc/mean@1)")
    return found


def summary(run: Run) -> str:
    steps = run.training_steps
    if not steps:
        return "no training step"
    parts = [f"steps {steps[0]} to {steps[-1]}"]
    if rewards := _present(run.column(REWARD)):
        parts.append(f"reward {rewards[0]:.3f} → {rewards[-1]:.3f}")
    if seconds := _present(run.column(STEP_SECONDS)):
        parts.append(f"{fmean(seconds):.2f} s per step")
    # The worker's own names, which the trainer prefixes with "actor/".
    for label, suffix in {
        "peak memory of a worker": "perf/max_memory_allocated_gb",
        "machine memory in use up to": "perf/cpu_memory_used_gb",
    }.items():
        peak = max((v for s in steps for n, v in run.steps[s].items() if n.endswith(suffix)), default=0.0)
        if peak > 0:
            parts.append(f"{label} {peak:.1f} GB")
    return ", ".join(parts)


def _cells(values: list[float | None], spec: str) -> list[str]:
    return ["" if value is None else format(value, spec) for value in values]


def _present(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _with_error(result: HeldOut) -> str:
    error = "" if result.error is None else f" ± {result.error:.3f}"
    return f"{result.value:.3f}{error} (step {result.step})"


def _print_table(title: str, cells: tuple[list[str], list[list[str]]]) -> None:
    header, rows = cells
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name, justify="left" if name in ("data", "measure", "model", "") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False)
    # Never cut a number off to fit a narrow terminal or a pipe.
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)
