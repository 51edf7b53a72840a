"""Addition as chat questions, in veRL's parquet format.

    python examples/quickstart/data.py --out runs/addition

"What is 4 + 7? Answer with only the number." A pair of numbers is held out in both orders or in neither, so no
test question is a training question turned round. The same arguments give the same bytes. The folder appears
whole or not at all; a second call finds it and returns.
"""

import argparse
import os
import random
import tempfile
from itertools import combinations_with_replacement
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# A system message of one's own keeps the model's long default one out: prompts of 28 tokens, not 44.
SYSTEM = "Answer with only the number."
QUESTION = "What is {a} + {b}?"


def row(split: str, index: int, a: int, b: int) -> dict:
    return {
        "data_source": "gpg_verl/addition",
        "prompt": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": QUESTION.format(a=a, b=b)},
        ],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(a + b)},
        "extra_info": {"split": split, "index": index, "a": a, "b": b},
    }


def rows(largest: int, held_out: int, seed: int) -> dict[str, list[dict]]:
    """`train` and `test` rows of a + b with 1 ≤ a, b ≤ largest.

    Test: `held_out` pairs, each once, in one of its orders. Train: all the other pairs, in both orders.
    """
    if not 2 <= largest <= 99:
        raise SystemExit(f"--largest is {largest}; allowed is 2 to 99, numbers of one or two digits")
    pairs = list(combinations_with_replacement(range(1, largest + 1), 2))
    if not 1 <= held_out < len(pairs):
        raise SystemExit(
            f"--held-out is {held_out}; allowed is 1 to {len(pairs) - 1}, because --largest {largest} has {len(pairs)} "
            "pairs and training needs at least one. Hold out fewer, or raise --largest."
        )
    rng = random.Random(seed)
    rng.shuffle(pairs)
    test = [pair if rng.random() < 0.5 else pair[::-1] for pair in pairs[:held_out]]
    train = [order for a, b in pairs[held_out:] for order in sorted({(a, b), (b, a)})]
    rng.shuffle(train)
    return {
        split: [row(split, index, a, b) for index, (a, b) in enumerate(questions)]
        for split, questions in (("train", train), ("test", test))
    }


def write(tables: dict[str, pa.Table], out: Path) -> bool:
    """Write `out`/NAME.parquet for every table at once; False if they are there already."""
    if out.exists():
        for name, table in tables.items():
            file = out / f"{name}.parquet"
            if not file.is_file() or not pq.read_table(file).equals(table):
                raise SystemExit(
                    f"--out {out} exists and {file.name} in it is not what these arguments give. Name another "
                    "folder, or delete this one and run again."
                )
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        work = Path(temporary) / "data"
        work.mkdir()
        for name, table in tables.items():
            pq.write_table(table, work / f"{name}.parquet")
        os.replace(work, out)
    return True


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    # Measured over 15 steps of 64 responses: up to 12, the reward rises until step 11 and held-out accuracy goes from
    # 0.38 to 0.98; up to 20 it stalls at 0.7, up to 9 only 45 pairs are left to share, up to 99 few groups are mixed.
    parser.add_argument("--largest", type=int, default=12, help="the numbers added are 1 to this (default 12)")
    parser.add_argument("--held-out", type=int, default=40, help="pairs kept for the test (default 40)")
    parser.add_argument("--seed", type=int, default=1, help="which pairs are held out, and the order (default 1)")
    args = parser.parse_args(arguments)
    tables = {name: pa.Table.from_pylist(r) for name, r in rows(args.largest, args.held_out, args.seed).items()}
    verb = "wrote" if write(tables, args.out) else "found"
    print(f"{verb} {args.out}: {tables['train'].num_rows} training questions, {tables['test'].num_rows} held out")


if __name__ == "__main__":
    main()
