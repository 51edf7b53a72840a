"""python -m reward_fns audit FILE [FILE ...]: lists the rows whose gold answer cannot be read, before a run.

FILE is parquet or jsonl in veRL's format. The exit code is 0 if every row can be scored, 1 if some cannot, 2 if a file
cannot be read.
"""

import argparse
import sys
from pathlib import Path

from reward_fns import audit


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reward_fns", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("audit", help="list the rows whose gold answer cannot be read")
    command.add_argument("files", nargs="+", type=Path, metavar="FILE")
    return audit.main(parser.parse_args(arguments).files)


if __name__ == "__main__":
    sys.exit(main())
