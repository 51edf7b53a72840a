"""Runs beside the paper's tables, with their learning curves; a quick look at one; its progress while it trains.

python -m gpg_verl.report runs/rs1-seed1 runs/rs1-seed2 --table T1
python -m gpg_verl.report show runs/quickstart
python -m gpg_verl.report watch runs/quickstart --log runs/quickstart/train.log --steps 20 -- bash train.sh
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gpg_verl.report import ReportError
from gpg_verl.report.compare import Entry, Group, find_row, group, load_entry, table_json
from gpg_verl.report.metrics import ENTROPY, GRAD_NORM, LENGTH, REWARD, TRUNCATED, load_run
from gpg_verl.report.page import write_page
from gpg_verl.report.paper import TABLES, PaperTable
from gpg_verl.report.plot import plot_groups, plot_seeds
from gpg_verl.report.seeds import compare, compared_json
from gpg_verl.report.table import notes, print_compared, print_groups, print_paper_table, print_run, summary
from gpg_verl.report.watch import watch

PROG = "python -m gpg_verl.report"


def main(argv: list[str]) -> int:
    options, command = argv, []
    if argv[:1] == ["watch"] and "--" in argv:  # argparse would take the options of COMMAND for its own
        split = argv.index("--")
        options, command = argv[:split], argv[split + 1 :]
    if argv[:1] not in (["show"], ["watch"]):
        options = ["report", *argv]
    parser = build_parser()
    args = parser.parse_args(options)
    try:
        if args.action == "report":
            return report(args.runs, args.table, args.row, args.out)
        if args.action == "show":
            return show(args.runs, args.plot)
        if not command:
            parser.error("watch needs the command to run after '--', as in: watch RUN --log FILE -- bash train.sh")
        return watch(args.run, args.log, command, args.steps)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def report(paths: list[Path], table: str | None, rows: list[str], out: Path | None) -> int:
    """The paper's tables with our rows on the terminal; curves, page and JSON in a folder."""
    if len(rows) not in (0, 1, len(paths)):
        raise ReportError(f"--row is given {len(rows)} times for {len(paths)} runs: once for all, or once for each.")
    if rows and table is None:
        raise ReportError(f"--row needs --table, one of {', '.join(TABLES)}.")
    rows = [find_row(TABLES[table], row) for row in rows]
    entries: list[Entry] = []
    unread: list[ReportError] = []
    for i, path in enumerate(paths):
        try:
            entries.append(load_entry(path, table, rows[i % len(rows)] if rows else None))
        except ReportError as error:
            unread.append(error)
    if not entries:
        raise unread[0]
    groups = group(entries)
    tables = [TABLES[table]] if table else [TABLES[name] for name in TABLES if any(g.table == name for g in groups)]

    out = out or entries[0].run.folder / "report"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"{out}: cannot make this folder ({error.strerror}). Name another: --out DIR.") from None
    plot_groups(groups, out / "curves.png")
    compared = compare(groups)
    if compared:
        plot_seeds(groups, out / "seeds.png")
    write_page(tables, groups, out / "curves.png", out / "report.html", compared, out / "seeds.png")
    found = as_json(tables, groups) | ({"compared": compared_json(compared)} if compared else {})
    (out / "report.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")

    for chosen in tables:
        print_paper_table(chosen, groups)
    if len(groups) > 1:
        print_groups(groups)
    if compared:
        print_compared(compared)
    for g in groups:
        for run in g.runs:
            print(f"{g.label} ({run.folder}): {summary(run)}")
    for error in unread:
        print(f"note: left out: {error}")
    if not tables:
        print("note: no run says which row of the paper's tables it is: see --table and --row")
    pictures = [out / name for name in ("curves.png", "seeds.png")[: 2 if compared else 1]]
    print("", out / "report.html", *pictures, out / "report.json", sep="\n")
    return 0


def as_json(tables: Sequence[PaperTable], groups: Sequence[Group]) -> dict:
    runs = [
        {
            "row": g.label,
            "table": g.table,
            "folder": str(run.folder),
            "written": run.written.isoformat(timespec="seconds"),
            "summary": summary(run),
            "notes": notes(run),
            "held_out": [vars(result) for result in run.held_out],
            "steps": {step: _reported(values) for step, values in run.steps.items()},
        }
        for g in groups
        for run in g.runs
    ]
    return {"tables": [table_json(table, groups) for table in tables], "runs": runs}


def _reported(values: dict[str, float]) -> dict[str, float]:
    """Of a step's hundreds of metrics those that the report is about."""
    names = (REWARD, LENGTH, TRUNCATED, GRAD_NORM, *ENTROPY)
    return {n: v for n, v in values.items() if n in names or n.startswith(("gpg/", "timing_s/", "val-core/"))}


def show(paths: list[Path], plot: Path | None) -> int:
    runs = [load_run(path) for path in paths]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    for run, name in zip(runs, names, strict=True):
        print_run(run, name)
    plot = plot or runs[0].folder / ("plot.png" if len(runs) == 1 else "comparison.png")
    plot_groups([Group(name, None, [Entry(run, name)]) for run, name in zip(runs, names, strict=True)], plot)
    print(f"plot: {plot}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__, formatter_class=raw)
    actions = parser.add_subparsers(dest="action", required=True)

    report = actions.add_parser(
        "report",
        prog=PROG,
        usage=f"{PROG} RUN [RUN ...] [--table {'|'.join(TABLES)}] [--row NAME] [--out DIR]\n"
        f"       {PROG} show --help\n       {PROG} watch --help",
        help="runs beside the paper's tables, with curves, a page and JSON",
        description="Put runs beside the paper's table and draw their learning curves. Several runs of one row are\n"
        "seeds of it: mean and spread. Two rows with several seeds each are compared by step, by response and by\n"
        "second, with intervals and a paired test against the first row; a run's seed is in its folder's name\n"
        "(gpg-seed2). A run says which row it is in its run.json, as recipes write it, or by --table and --row.\n"
        "RUN/eval, a validation with trainer.val_only=True, holds its results.",
        epilog=f"examples:\n  {PROG} runs/t1-gpg-rs1-seed*\n"
        f"  {PROG} runs/mine --table T1 --row GPG-RS1 --out report\n"
        f"  {PROG} show runs/quickstart      # one run's steps as a table",
        formatter_class=raw,
    )
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder with metrics*.jsonl or event files")
    report.add_argument("--table", choices=list(TABLES), help="default: what the runs say they belong to")
    report.add_argument(
        "--row", action="append", default=[], metavar="NAME", help="row of the table: once for all runs, or for each"
    )
    report.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the files (default: report in the first run)"
    )

    show = actions.add_parser(
        "show",
        help="print a run's steps and draw its curves",
        description="Print the tables of each run, a line per step, and draw its learning curves:\n"
        "one line per run for several.",
        epilog=f"example:\n  {PROG} show runs/gpg runs/grpo --plot gpg-vs-grpo.png",
        formatter_class=raw,
    )
    show.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder with metrics*.jsonl, or the path of such a file",
    )
    show.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="where the plot goes (default: plot.png, or comparison.png for several, in the first run)",
    )

    watch = actions.add_parser(
        "watch",
        usage=f"{PROG} watch RUN --log FILE [--steps N] -- COMMAND [ARG ...]",
        help="run a training command with a progress bar",
        description="Run COMMAND with its output in a log file and show its progress from\n"
        "RUN/metrics.jsonl, or the file VERL_FILE_LOGGER_PATH names if that is set: a bar on a terminal,\n"
        "else one line per step. On failure prints the error.\n"
        "The exit code is that of COMMAND.",
        epilog=f"example:\n  {PROG} watch runs/gpg --log runs/gpg/train.log --steps 20 -- bash train.sh",
        formatter_class=raw,
    )
    watch.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="folder of the run, with its metrics.jsonl",
    )
    watch.add_argument("--log", type=Path, required=True, metavar="FILE", help="file for all output of COMMAND")
    watch.add_argument("--steps", type=int, metavar="N", help="training steps in total, for the bar and the time left")
    return parser


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
