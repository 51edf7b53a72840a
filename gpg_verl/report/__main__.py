"""Tables and plots of a training run, and a progress bar while it trains.

python -m gpg_verl.report show runs/quickstart
python -m gpg_verl.report watch runs/quickstart --log runs/quickstart/train.log --steps 20 -- bash train.sh
"""

import argparse
import sys
from pathlib import Path

from gpg_verl.report.metrics import ReportError, load_run
from gpg_verl.report.plot import plot_runs
from gpg_verl.report.table import print_run
from gpg_verl.report.watch import watch

PROG = "python -m gpg_verl.report"


def main(argv: list[str]) -> int:
    options, command = argv, []
    if argv[:1] == ["watch"] and "--" in argv:  # argparse would take the options of COMMAND for its own
        split = argv.index("--")
        options, command = argv[:split], argv[split + 1 :]
    parser = build_parser()
    args = parser.parse_args(options)
    try:
        if args.action == "show":
            return show(args.runs, args.plot)
        if not command:
            parser.error("watch needs the command to run after '--', as in: watch RUN --log FILE -- bash train.sh")
        return watch(args.run, args.log, command, args.steps)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def show(paths: list[Path], plot: Path | None) -> int:
    runs = [load_run(path) for path in paths]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    for run, name in zip(runs, names, strict=True):
        print_run(run, name)
    plot = plot or runs[0].folder / ("plot.png" if len(runs) == 1 else "comparison.png")
    plot_runs(runs, names, plot)
    print(f"plot: {plot}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__, formatter_class=raw)
    actions = parser.add_subparsers(dest="action", required=True)

    show = actions.add_parser(
        "show",
        help="print a run's tables and draw its plot",
        description="Print the tables of each run and draw a plot: seconds by stage for one run,\n"
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
