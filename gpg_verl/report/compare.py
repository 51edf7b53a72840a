"""Our runs as rows of the paper's tables, several seeds as mean and spread.

How a run says which row it is: the file `run.json` in its folder, which a recipe writes when it starts,

    {"table": "T1", "row": "GPG-RS1"}

or `--table` and `--row` on the command line. Runs of the same row are seeds of it.

Where a run's evaluation is: in the folder `eval` inside the run's, itself a run folder of a validation
with `trainer.val_only=True`, VERL_FILE_LOGGER_PATH=RUN/eval/metrics.jsonl and
`trainer.validation_data_dir=RUN/eval/validation`. It stands above the run's own last validation, data set by data set.
The evaluation of a model that was not trained here is given as a run by itself. Beside its metrics may lie
`masks.json`, from `python -m gpg_verl.report.masks`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from gpg_verl.report import ReportError
from gpg_verl.report.metrics import HeldOut, Run, last_measured, load_run
from gpg_verl.report.paper import TABLES, Column, PaperTable

OF_ANSWERS = {  # what the reward function measures beside accuracy, for the columns that ask for it
    column for table in TABLES.values() for column in table.columns.values() if column.measure == "box_iou"
}


@dataclass(frozen=True)
class Entry:
    """One run given to the report."""

    run: Run
    label: str  # the row it is, or else its folder's name
    table: str | None = None
    results: dict[Column, HeldOut] = field(default_factory=dict)  # the last of each
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """The runs of one row: its seeds."""

    label: str
    table: str | None
    entries: list[Entry]

    @property
    def runs(self) -> list[Run]:
        return [entry.run for entry in self.entries]


@dataclass(frozen=True)
class Cell:
    """Our result in one column, in %."""

    mean: float
    error: float | None  # of one run: standard error over its questions; of several: standard deviation over the seeds
    seeds: list[float]
    k: int | None = None  # answers per question; None for an average over columns
    questions: int | None = None
    truncated: float | None = None  # % of the answers that ran into the limit


def load_entry(path: Path, table: str | None = None, row: str | None = None) -> Entry:
    """A run with its evaluation and its row; `table` and `row` stand above its run.json."""
    folder = path if path.is_dir() else path.parent
    claim = _read_claim(folder / "run.json")
    run = load_run(path)
    results, notes = _last_results(run), []
    if (folder / "eval").is_dir():
        try:
            results |= _last_results(load_run(folder / "eval"))
        except ReportError as error:  # it has not logged yet, or never did: no reason to hide the run
            notes.append(f"evaluation left out: {error}")
    table, row = table or claim.get("table"), row or claim.get("row")
    if table and row:
        row = find_row(TABLES[table], row)
    return Entry(run, row or run.name, table if row else None, results, notes)


def group(entries: Sequence[Entry]) -> list[Group]:
    """Runs with the same row, in the order given."""
    keys = dict.fromkeys((entry.table, entry.label) for entry in entries)
    return [Group(key[1], key[0], [e for e in entries if (e.table, e.label) == key]) for key in keys]


def find_row(table: PaperTable, name: str) -> str:
    """The row of that name; letter case, spaces and the kind of minus sign do not matter."""

    def plain(text: str) -> str:
        return re.sub(r"\s", "", text.replace("−", "-").casefold())

    for row in table.rows:
        if plain(row) == plain(name):
            return row
    raise ReportError(f"{name!r} is no row of {table.name}. Its rows: {'; '.join(table.rows)}. Name one with --row.")


def cells(table: PaperTable, entries: Sequence[Entry]) -> dict[str, Cell]:
    """Header → our result, over the runs that have one; with the table's average, where there is one."""
    found = _cells_of(table.columns, entries)
    average = _average(table, entries, found) if table.average else None
    return found if average is None else {table.average: average} | found


def _cells_of(columns: dict[str, Column], entries: Sequence[Entry]) -> dict[str, Cell]:
    results = {header: [e.results[c] for e in entries if c in e.results] for header, c in columns.items()}
    return {header: _cell(some) for header, some in results.items() if some}


def _average(table: PaperTable, entries: Sequence[Entry], found: dict[str, Cell]) -> Cell | None:
    """Over the runs that have all columns; where each column is a run of its own, over the columns' results."""
    weights = table.weights or (1,) * len(table.columns)
    shares = [weight / sum(weights) for weight in weights]

    def of(values: Sequence[float]) -> float:
        return sum(share * value for share, value in zip(shares, values, strict=True))

    def of_errors(errors: Sequence[float | None]) -> float | None:  # of a sum of independent means
        return None if None in errors else math.hypot(*(s * e for s, e in zip(shares, errors, strict=True)))

    if table.run_per_column:
        if len(found) < len(table.columns):
            return None
        mean = of([cell.mean for cell in found.values()])
        return Cell(mean, of_errors([cell.error for cell in found.values()]), [mean])
    complete = [e for e in entries if all(column in e.results for column in table.columns.values())]
    if not complete:
        return None
    rows = [[e.results[column] for column in table.columns.values()] for e in complete]
    seeds = [100 * of([result.value for result in row]) for row in rows]
    of_one = of_errors([result.error for result in rows[0]])
    error = stdev(seeds) if len(seeds) > 1 else None if of_one is None else 100 * of_one
    return Cell(fmean(seeds), error, seeds)


def _seeds(table: PaperTable, entries: Sequence[Entry], found: dict[str, Cell]) -> int:
    """How many runs of the row a column can have."""
    return max((len(cell.seeds) for cell in found.values()), default=1) if table.run_per_column else len(entries)


def table_lines(table: PaperTable, groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the paper's table: each row as the paper has it, below it ours and the difference."""
    columns, digits = table.headers, table.decimals
    lines = []
    for row, reported in table.rows.items():
        paper = dict(zip(columns, reported, strict=True))
        lines.append([row, "paper", *("-" if paper[c] is None else f"{paper[c]:.{digits}f}" for c in columns)])
        for entries in (g.entries for g in groups if (g.table, g.label) == (table.name, row)):
            ours = cells(table, entries)
            seeds = _seeds(table, entries, ours)
            who = "ours" if seeds == 1 else f"ours, {seeds} seeds"
            lines.append(["", who, *(_with_error(ours.get(c), digits) for c in columns)])
            lines.append(["", "difference", *(_difference(ours.get(c), paper[c], digits) for c in columns)])
            truncated = [_percent(ours[c].truncated if c in ours else None) for c in columns]
            if any(truncated):
                lines.append(["", "truncated", *truncated])
    return ["model", "", *columns], lines


def table_notes(table: PaperTable, groups: Sequence[Group]) -> list[str]:
    """What a reader must know: the missing cells and rows, what ± is, how many answers a question had."""
    ours = [g for g in groups if g.table == table.name]
    found = [table.note] if table.note else []
    sampled: dict[str, list[str]] = {}  # how → by whom
    for g in ours:
        got = cells(table, g.entries)
        missing = [f"{header} ({column})" for header, column in table.columns.items() if header not in got]
        if missing:
            found.append(f"{g.label}: no result, left empty: {', '.join(missing)}")
        seeds = _seeds(table, g.entries, got)
        some = [
            f"{c} {len(cell.seeds)}"
            for c, cell in got.items()
            if len(cell.seeds) < seeds and not (table.run_per_column and c == table.average)
        ]
        if some:
            found.append(f"{g.label}: not all of its {seeds} runs have a result, but: {', '.join(some)}")
        for header, cell in got.items():
            if cell.k:
                sampled.setdefault(f"{header}: {_sampling(cell, table.columns[header])}", []).append(g.label)
        beside = [f"{h} {_with_error(cell, table.decimals)}" for h, cell in _cells_of(table.beside, g.entries).items()]
        if beside:
            found.append(f"{g.label}: measured beside the paper's columns: {', '.join(beside)}")
        found += [f"{g.label}: {note}" for entry in g.entries for note in entry.notes]
    found += [how if len(who) == len(ours) else f"{how} ({'; '.join(who)})" for how, who in sampled.items()]
    absent = [row for row in table.rows if row not in {g.label for g in ours}]
    if absent:
        found.append(f"no run of ours: {'; '.join(absent)}")
    if ours:
        found.append(
            "±: of one run the standard error over its questions, of several the standard deviation over seeds"
        )
    return found


def table_json(table: PaperTable, groups: Sequence[Group]) -> dict:
    """The table for machines; percentages, None where there is nothing."""
    columns = table.headers
    rows = []
    for row, reported in table.rows.items():
        entries = next((g.entries for g in groups if (g.table, g.label) == (table.name, row)), [])
        ours = cells(table, entries) if entries else {}
        paper = dict(zip(columns, reported, strict=True))
        rows.append(
            {
                "row": row,
                "paper": paper,
                "ours": {column: vars(cell) for column, cell in ours.items()},
                "difference": {c: ours[c].mean - paper[c] for c in ours if paper[c] is not None},
                "beside": {h: vars(cell) for h, cell in _cells_of(table.beside, entries).items()},
                "missing": [column for column in columns if column not in ours],
                "runs": [str(entry.run.folder) for entry in entries],
            }
        )
    return {"table": table.name, "title": table.title, "columns": columns, "rows": rows}


def _read_claim(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    try:
        claim = json.loads(file.read_text(encoding="utf-8"))
        table = claim.get("table")
    except (ValueError, AttributeError):
        claim, table = {}, "?"
    if table is not None and table not in TABLES:
        raise ReportError(
            f'{file}: expected {{"table": "T1", "row": "GPG-RS1"}}, with a table of {", ".join(TABLES)}. '
            "Mend it, or delete it and name the row with --table and --row."
        )
    return claim


def _last_results(run: Run) -> dict[Column, HeldOut]:
    found = {Column(result.source): result for result in run.held_out if result.kind == "acc"}
    for column in OF_ANSWERS:
        if result := last_measured(run, column.source, column.measure):
            found[column] = result
    return found | _mask_ious(run.folder / "masks.json")


def _mask_ious(file: Path) -> dict[Column, HeldOut]:
    """What gpg_verl.report.masks measured of the answers; nothing where it has not run."""
    if not file.is_file():
        return {}
    try:
        found = {}
        for source, of in json.loads(file.read_text(encoding="utf-8"))["sources"].items():
            for name, error in (("mask_giou", of["mask_giou_error"]), ("mask_ciou", None)):
                found[Column(source, name)] = HeldOut(
                    of["step"], source, name, of[name], questions=of["images"], error=error
                )
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(
            f"{file}: not what `python -m gpg_verl.report.masks` writes ({type(error).__name__}: {error}). Run it "
            "again, or delete the file to report without masks."
        ) from None


def _cell(results: list[HeldOut]) -> Cell:
    values = [100 * result.value for result in results]
    truncated = [result.truncated for result in results]
    of_one = None if results[0].error is None else 100 * results[0].error
    return Cell(
        mean=fmean(values),
        error=stdev(values) if len(values) > 1 else of_one,
        seeds=values,
        k=results[0].k,
        questions=results[0].questions,
        truncated=None if None in truncated else 100 * fmean(truncated),
    )


def _with_error(cell: Cell | None, digits: int) -> str:
    if cell is None:
        return ""
    return f"{cell.mean:.{digits}f}" + ("" if cell.error is None else f" ± {cell.error:.{digits}f}")


def _difference(cell: Cell | None, paper: float | None, digits: int) -> str:
    return "" if cell is None or paper is None else f"{cell.mean - paper:+.{digits}f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1f} %"


def _sampling(cell: Cell, column: Column) -> str:
    measure = f"avg@{cell.k}" if cell.k > 1 else "pass@1" if column.measure == "acc" else "one answer a question"
    return measure if cell.questions is None else f"{measure} over {cell.questions} questions"
