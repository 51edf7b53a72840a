"""Runs beside the paper's tables, with their learning curves; a quick look at one; its progress while it trains.

python -m gpg_verl.report runs/rs1-seed1 runs/rs1-seed2 --table T1
python -m gpg_verl.report show runs/gpg runs/grpo --plot gpg-vs-grpo.png
python -m gpg_verl.report watch runs/quickstart --log runs/quickstart/train.log --steps 20 -- bash train.sh
"""

import argparse
import sys
from pathlib import Path

import orjson

from gpg_verl.report import ReportError, draw, tables
from gpg_verl.report.paper import TABLES, find_row
from gpg_verl.report.runs import load_run
from gpg_verl.report.tables import Groups, Section
from gpg_verl.report.watch import watch

PROG = "python -m gpg_verl.report"
ABOUT = {
    "report": """Put runs beside the paper's table and draw their learning curves. Several runs of one row are seeds
of it: mean and spread. Two rows with several seeds each are compared by step and by second, with intervals and a
paired test against the first row; a run's seed is in its folder's name (gpg-seed2). A run says which row it is in its
run.json, as recipes write it, or by --table and --row. RUN/eval, a validation with trainer.val_only=True, holds its
results. See also: show --help, watch --help, and python -m gpg_verl.report.masks --help.""",
    "show": "Print the tables of each run, a line per step, and draw its curves: one line per run for several.",
    "watch": """Run the command after '--' with its output in a log file and show its progress from RUN/metrics.jsonl,
or the file VERL_FILE_LOGGER_PATH names if that is set: a bar on a terminal, else one line per step. On failure prints
the end of the log. The exit code is that of the command.""",
}


def main(argv: list[str]) -> int:
    action, *options = argv if argv[:1] in (["show"], ["watch"]) else ["report", *argv]
    parser = argparse.ArgumentParser(
        prog=PROG if action == "report" else f"{PROG} {action}",
        description=ABOUT[action],
        epilog="examples:" + __doc__.partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    if action == "watch":
        add("run", type=Path, metavar="RUN", help="folder of the run, with its metrics.jsonl")
        add("--log", type=Path, required=True, metavar="FILE", help="file for all output of the command")
        add("--steps", type=int, metavar="N", help="training steps in total, for the bar and time left")
    else:
        add("runs", nargs="+", type=Path, metavar="RUN", help="folder with metrics*.jsonl, or such a file")
    if action == "show":
        add("--plot", type=Path, metavar="FILE", help="default: plot.png, or comparison.png for several")
    if action == "report":
        add("--table", choices=list(TABLES), help="default: what the runs say they belong to")
        add("--row", action="append", help="row of the table: once for all runs, or for each")
        add("--out", type=Path, metavar="DIR", help="folder for the files (default: report in the first run)")
    # argparse would take the options of the watched command for its own.
    split = options.index("--") if action == "watch" and "--" in options else len(options)
    args, command = parser.parse_args(options[:split]), options[split + 1 :]
    if action == "watch" and not command:
        parser.error("watch needs the command to run after '--', as in: watch RUN --log FILE -- bash train.sh")
    try:
        if action == "report":
            return report(args.runs, args.table, args.row, args.out)
        return show(args.runs, args.plot) if action == "show" else watch(args.run, args.log, command, args.steps)
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def report(paths: list[Path], table: str | None, rows: list[str] | None, out: Path | None) -> int:
    """The paper's tables with our rows on the terminal; curves, page and JSON in a folder."""
    rows = rows or [None]
    if len(rows) not in (1, len(paths)):
        raise ReportError(f"--row is given {len(rows)} times for {len(paths)} runs: once for all, or once for each.")
    if rows[0] and table is None:
        raise ReportError(f"--row needs --table, one of {', '.join(TABLES)}.")
    rows = [row and find_row(table, row) for row in rows] * (len(paths) // len(rows))
    runs, unread = [], []
    for path, row in zip(paths, rows, strict=True):
        try:
            runs.append(load_run(path, table, row))
        except ReportError as error:
            unread.append(error)
    if not runs:
        raise unread[0]
    out = out or runs[0].folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    groups = tables.group(runs)
    papers = [paper for paper in TABLES.values() if paper.name in {table, *(name for name, _ in groups)}]
    sections = [tables.beside_paper(paper, groups) for paper in papers]
    sections += [tables.side_by_side(groups)] if len(groups) > 1 else []
    sections += [compared] if (compared := tables.compare(groups)) else []
    curves, page, data = out / "curves.png", out / "report.html", out / "report.json"
    draw.curves(groups, curves)
    page.write_text(draw.page(sections, runs, curves), encoding="utf-8")
    data.write_bytes(as_json(groups, sections))
    for section in sections:
        print_section(section)
    for run in runs:
        print(f"{run.label} ({run.folder}): {tables.summary(run)}")
    for error in unread:
        print(f"note: left out: {error}")
    if not papers:
        print("note: no run says which row of the paper's tables it is: see --table and --row")
    print("", page, curves, data, sep="\n")
    return 0


def as_json(groups: Groups, sections: list[Section]) -> bytes:
    """The report for machines: ours beside the paper's in %, the tables, and the runs with the metrics it is about."""
    shown = "^(critic/score|response_length|gpg|timing_s|val-core)/|^actor/(entropy|grad_norm)"
    shown_tables = {s.title: {"rows": s.table.to_dict("records"), "notes": s.notes} for s in sections}
    found = {"rows": [], "tables": shown_tables, "runs": []}
    for (name, row), runs in groups.items():
        if name:
            ours = {header: cell._asdict() for header, cell in tables.cells(TABLES[name], runs).items()}
            found["rows"].append({"table": name, "row": row, "paper": TABLES[name].rows[row], "ours": ours})
        for run in runs:
            told = {name: getattr(run, name) for name in ("label", "table", "folder", "notes", "smoke")}
            told |= {"summary": tables.summary(run), "held_out": run.held_out.to_dict("records")}
            told["steps"] = {n: step.dropna().to_dict() for n, step in run.steps.filter(regex=shown).iterrows()}
            found["runs"].append(told)
    options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    return orjson.dumps(found, default=str, option=options)


def show(paths: list[Path], plot: Path | None) -> int:
    """Each run's tables on the terminal, and the curves of all."""
    runs = [load_run(path) for path in paths]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    for run, name in zip(runs, names, strict=True):
        print_section(Section(f"{name}: training", tables.training(run)))
        print_section(tables.held_out(run, f"{name}: held-out"))
        print(f"{name}: {tables.summary(run)}\n")
    plot = plot or runs[0].folder / ("plot.png" if len(runs) == 1 else "comparison.png")
    draw.curves({(None, name): [run] for name, run in zip(names, runs, strict=True)}, plot)
    print(f"plot: {plot}")
    return 0


def print_section(section: Section) -> None:
    """Whole, however narrow the terminal."""
    if len(section.table):
        shown = section.texts()
        for name in shown.columns.intersection(["data", "measure", "model", ""]):  # words start at the left
            shown[name] = shown[name].str.ljust(shown[name].str.len().max())
        print(f"\n{section.title}\n{shown.to_string(index=False)}\n")
    for note in section.notes:
        print(f"note: {note}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
