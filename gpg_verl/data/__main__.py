"""The paper's data sets as veRL's parquet files, from the Hugging Face hub or from local files.

python -m gpg_verl.data list
python -m gpg_verl.data gsm8k --out data
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from gpg_verl.data import DataError
from gpg_verl.data.checks import PromptLength
from gpg_verl.data.dataset import DataSet
from gpg_verl.data.images import MAX_PIXELS, MIN_PIXELS
from gpg_verl.data.prepare import Options, prepare
from gpg_verl.data.templates import TEMPLATES, get_template
from gpg_verl.data.text_sets import TEXT_SETS
from gpg_verl.data.vision_sets import VISION_SETS

PROG = "python -m gpg_verl.data"
SETS = TEXT_SETS | VISION_SETS
EXAMPLES = f"""examples:
  {PROG} list
  {PROG} math500 --out data                                      # download from the hub
  {PROG} gsm8k --out data --source gsm8k_train.jsonl --split train
  {PROG} math --out data --level 3 4 5 --template think          # reads data/*_test.parquet: no leaks
  {PROG} open-s1 --out data --template think-answer --tokenizer MODEL --max-prompt-length 512
  {PROG} cv_bench --out data --tokenizer MODEL --max-prompt-length 1024   # images, scaled down to {MAX_PIXELS} pixels
  {PROG} lisa --out data --source ReasonSeg                       # a folder with train, val and test
  {PROG} flowers --out data --split test --source oxford_flowers.pth --images jpg
"""


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.name == "list":
        print_list()
        return 0
    try:
        data_set = SETS[args.name]
        options = parse_options(parser, args, data_set)
        for split in splits(args, data_set):
            for line in prepare(data_set, split, args.out, options):
                print(line, flush=True)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.template.plain:
        print("this text is a whole prompt: use it with +prompt=plain, which leaves out the model's chat template")
    return 0


def parse_options(parser: argparse.ArgumentParser, args: argparse.Namespace, data_set: DataSet) -> Options:
    """The command line as `Options`; what does not go together ends the command, as argparse's own errors do."""
    template = get_template(args.template or data_set.template)
    with_images, name = data_set.images, data_set.name
    for wrong, message in (
        (args.out is None, f"--out is missing: name the folder for {name}, as in --out data"),
        (
            (args.tokenizer is None) != (args.max_prompt_length is None),
            "--tokenizer and --max-prompt-length belong together: give both or none",
        ),
        (args.level and name != "math", f"--level is for math, not for {name}"),
        (
            args.against and "train" not in splits(args, data_set),
            "--against is for training data; an evaluation set is compared with the *_train.parquet in DIR",
        ),
        (args.limit is not None and args.limit < 1, f"--limit is {args.limit}; allowed is 1 or more"),
        (
            (args.images or args.max_pixels != MAX_PIXELS) and not with_images,
            f"--images and --max-pixels are for data sets with images, and {name} has none",
        ),
        (args.images and not args.images.is_dir(), f"--images {args.images}: no such folder"),
        (
            args.max_pixels < MIN_PIXELS,
            f"--max-pixels is {args.max_pixels}; allowed is {MIN_PIXELS} or more, as the models scale up to that",
        ),
    ):
        if wrong:
            parser.error(message)
    given = {field.name: getattr(args, field.name) for field in fields(Options) if hasattr(args, field.name)}
    length = PromptLength(args.tokenizer, template, with_images) if args.tokenizer else None
    return Options(**given | {"template": template, "levels": tuple(sorted(set(args.level))), "length": length})


def splits(args: argparse.Namespace, data_set: DataSet) -> list[str]:
    """The evaluation splits first: the training split is compared with it."""
    known = sorted(data_set.splits, key=lambda split: (split == "train", split))
    if args.split is None:
        if len(known) > 1 and args.source and Path(args.source).is_file():
            raise DataError(
                f"{data_set.name} has the splits {' and '.join(known)}, and --source {args.source} is one file: say "
                f"which of them it is with --split {' or --split '.join(known)}."
            )
        return known
    if args.split not in known:
        raise DataError(f"{data_set.name} has no split {args.split}; it has {' and '.join(known)}.")
    return [args.split]


def print_list() -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("name", "split", "rows", "licence", "source (hub id)", "what"):
        table.add_column(column, justify="right" if column == "rows" else "left", no_wrap=True)
    for entry in SETS.values():
        for split, known in entry.splits.items():
            rows = " or ".join(f"{n:,}" for n in known.rows) or "not known"
            source = entry.source_of(split) + (" (from local files)" if known.not_on_hub else "")
            table.add_row(entry.name, split, rows, entry.licence, source, entry.about)
    console = Console(markup=False, highlight=False)
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Write a data set as veRL's parquet: DIR/NAME_train.parquet, DIR/NAME_test.parquet. Checked every\n"
        "time: row counts, evaluation questions in training data, gold answers, images and, with a tokenizer, prompt\n"
        "lengths. A failing training row is left out and named, a failing evaluation row is an error. A file appears\n"
        "whole or not at all.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("name", choices=["list", *SETS], metavar="NAME", help=f"list, or one of {', '.join(SETS)}")
    option("--out", type=Path, metavar="DIR", help="folder for the files")
    source = (
        "a .jsonl, .json, .parquet or .arrow file, a folder, another hub id, or the set's own layout (lisa: the folder "
        "ReasonSeg; flowers, pets, aircraft, cars: Visual-RFT's .pth list)"
    )
    option("--source", metavar="PATH_OR_HUB_ID", help=source)
    images = (
        "where the images of a source with image paths are (default: its own folder). Absolute paths of another "
        "machine are looked up here by their file name"
    )
    option("--images", type=Path, metavar="DIR", help=images)
    pixels = f"larger images are scaled down to this many pixels, as Qwen's processors do (default {MAX_PIXELS})"
    option("--max-pixels", type=int, metavar="N", default=MAX_PIXELS, help=pixels)
    option("--split", choices=["train", "val", "test"], help="only this split; needed for a set of several from a file")
    option("--revision", help="branch, tag or commit on the hub")
    option("--limit", type=int, metavar="N", help="only the first N rows")
    levels = "only these levels of math"
    option("--level", type=int, nargs="+", choices=range(1, 6), default=[], metavar="L", help=levels)
    wordings = f"{', '.join(TEMPLATES)}, or a file with {{question}} in it (default: boxed, or that of the vision task)"
    option("--template", metavar="NAME_OR_FILE", help=wordings)
    against = (
        "evaluation sets whose questions must not be in the training data, beside the *_test.parquet and *_val.parquet "
        "in DIR; a question with an image is the same if both are"
    )
    option("--against", type=Path, nargs="+", default=[], metavar="FILE", help=against)
    option(
        "--tokenizer", metavar="MODEL", help="folder or hub id, to count the tokens of each prompt, its image included"
    )
    option("--max-prompt-length", type=int, metavar="N", help="tokens, as data.max_prompt_length")
    option("--allow-count", action="store_true", help="take a row count that is not the known one")
    option("--allow-broken", action="store_true", help="leave out failing evaluation rows, too, and say how many")
    option("--strict", action="store_true", help="stop at failing training rows instead of leaving them out")
    return parser


if __name__ == "__main__":
    sys.exit(main())
