"""What a policy gets for answers that answer nothing: constants, lists, hedges, parts of names.

    python examples/benchmark/rewards_attack.py --data DIR                    # about 3 minutes on 2 cores
    python examples/benchmark/rewards_attack.py --data DIR --names cars.txt   # class names of your own, one a line

DIR is that of rewards.py. For each data source thousands of such answers are tried on every gold. The best of them
may be paid no more often than the best honest answer, one class: the commonest gold itself, for choice one option.
Class names are made up in the shape of the real ones (maker, model, body, year). Exits with 1 where an attack is paid
more.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rewards_golds import golds

from reward_fns import compute_score, sources

GSM8K, MATH = "openai/gsm8k", "lighteval/MATH"


def joined(a: str, b: str) -> list[str]:
    """Two answers as one."""
    templates = ("{} or {}", "{}, {}", "{} and {}", "{}/{}", "{} & {}", "{}; {}", "{}. {}.", "{} ({})", "{}-{}",
        "{} {}", "{}{}",
                 "either {} or {}", "{} not {}", "not {} but {}", "{}|{}", "\\{{{},{}\\}}", "({},{})", "[{},{}]",
                     "{}\n{}",
                 "{} = {}", "{} to {}", "between {} and {}", "{} \\pm {}", "{} \\text{{ or }} {}")  # fmt: skip
    return [template.format(a, b) for template in templates]


def numbers() -> list[str]:
    """Constants, ranges and lists of numbers."""
    plain = (
        [str(n) for n in range(-20, 301)]
        + [f"{n}00" for n in range(3, 100)]
        + [f"\\frac{{{a}}}{{{b}}}" for a in range(1, 8) for b in range(2, 9)]
    )
    odd = ["", "x", "n", "0", "\\infty", "-\\infty", "\\mathbb{R}", "\\text{any}", "\\text{all}", "\\text{none}", "?",
        "*", "...", "e", "i",
           "\\pm 1", "\\pm 2", "1, 2, 3, \\ldots", "0 \\le x \\le 1000", "x > 0", "(0, 1000)", "[0,1000]",
               "(-\\infty,\\infty)",
           "x = x", "0 = 0", "\\text{the answer}", "answer", "N/A", "NaN", "nan", "inf", "0/0", "\\frac{0}{0}",
               "\\emptyset", "\\{\\}", "()", "[]",
           "\\text{cm}", "\\%", "\\$", "^\\circ", "_5", "10^{-10}", "10^{-100}", "0.0000001", "1e-9", "1e9",
               "\\frac{1}{2^{99}}"]  # fmt: skip
    lists = [", ".join(map(str, range(a, a + n))) for a in (0, 1, 2) for n in (2, 3, 5, 10, 20, 100)]
    lists += [f"\\{{{text}\\}}" for text in lists] + [text.replace(", ", " or ") for text in lists]
    return plain + odd + lists


def hedges(common: list[str]) -> Iterable[str]:
    for a, b in itertools.permutations(common, 2):
        yield from joined(a, b)
    for a in common:
        yield from (
            f"not {a}",
            f"at least {a}",
            f"about {a}, maybe more",
            f"{a}?",
            f"{a} or so",
            f"{a} (or not)",
            f"-{a} or {a}",
        )


def names(file: Path | None) -> list[str]:
    if file is not None:
        return file.read_text(encoding="utf-8").split("\n")
    rng = random.Random(0)
    makers = ("Audi", "Bentley", "Dodge", "Volvo", "Honda", "Aston Martin", "Ford")
    models = ("S4", "TTS", "Caliber", "GT", "Ram Pickup 3500", "X6", "Civic", "100", "Continental")
    bodies, years = ("Sedan", "Coupe", "Wagon", "SUV", "Convertible", "Crew Cab"), ("2007", "2009", "2012")
    # One year each: where two classes differ in nothing else, classname.py asks for the year by name.
    cars = [f"{m} {n} {b} {rng.choice(years)}" for m in makers for n in models for b in bodies if rng.random() < 0.12]
    return [*cars, "737-200", "737-300", "A320", "A319", "DC-10", "MD-80", "Model B200", "F-16A/B", "Saab 340", "pug",
        "Siamese",
            "Ragdoll", "american bulldog", "american pit bull terrier", "english setter", "english cocker spaniel",
                "beagle",
            "bird of paradise", "sweet pea", "english marigold", "rose", "sword lily", "king protea"]  # fmt: skip


def parts(all_names: list[str]) -> set[str]:
    """Words, pairs of words and beginnings of the names, and pairs of names."""
    found = {"", "a", "car", "dog", "flower", "the", "sedan2012", "unknown", " ".join(all_names), ", ".join(all_names)}
    for name in all_names:
        words = name.split()
        found.update(
            words,
            ("".join(words[i:]) for i in range(1, len(words))),
            (" ".join(words[:i]) for i in range(1, len(words))),
        )
        found.update(f"{a} {b}" for a, b in itertools.combinations(words, 2))
        found.update(name[:i] for i in range(1, len(name)))
    rng = random.Random(1)
    for _ in range(60):
        found.update(joined(*rng.sample(all_names, 2)))
    return found - set(all_names)


# One entry a data source: (name, data source, golds, attacks, how an answer is written).
BOX, ANSWER = "So it is \\boxed{{{}}}", "<think>a</think><answer>{}</answer>"


def cases(args: argparse.Namespace):
    sets = golds(args.data)
    rng = random.Random(0)

    def common(rows: list[list[str]]) -> list[str]:
        return [gold for gold, _ in Counter(row[0].strip("$ \n") for row in rows).most_common(5)]

    for name, rows in sets.items():
        rows = rng.sample(rows, min(len(rows), args.golds))
        attacks = numbers() + list(hedges(common(rows)))
        yield name, GSM8K if name == "GSM8K" else MATH, rows, attacks, BOX
        if name in ("GSM8K", "MATH-500"):
            yield (
                f"{name}, two boxes",
                GSM8K if name == "GSM8K" else MATH,
                rows,
                [
                    f"{a}}}{between}\\boxed{{{b}"
                    for a, b in itertools.permutations(common(rows), 2)
                    for between in (" or ", ", ", " and ", "", "\n", " / ", "$, $", " \\text{ or } ")
                ],
                BOX,
            )
    yield "GSM8K, ####", GSM8K, sets["GSM8K"][: args.golds], numbers() + list(hedges(common(sets["GSM8K"]))), "#### {}"
    letters = [[f"({letter})"] for letter in "ABCD"] * 5
    texts = "A B C D AB ABCD (A)(B) a dog|A dog|A, B|A or B|not A|all|none|(A) (B) (C) (D)|A/B/C/D|A B C D|A. B. C. D."
    yield "choice, letters", sources.CV_BENCH, letters, [*texts.split("|"), *hedges(["A", "B", "(C)", "D"])], ANSWER
    words = [[word] for word in ("left", "right", "up", "down", "yes", "no", "moved closer", "3", "1.5 meters")] * 3
    yield "choice, texts", sources.SAT, words, list(hedges(["left", "right", "yes", "no", "3"])) + numbers(), ANSWER
    values = [[f"{rng.choice((30, 45, 60, 90, 120, 145))}°"] for _ in range(60)] + [["5√3"], ["2π"], ["3.5"]]
    yield "GEOQA", sources.GEOQA_TRAIN, values, numbers() + list(hedges(["90", "60°", "45"])), ANSWER
    classes = names(args.names)
    yield "class names", sources.CARS, [[name] for name in classes], sorted(parts(classes)), ANSWER


def paid(source: str, rows: dict[tuple[str, ...], int], text: str) -> int:
    """For how many rows the text is right; `rows` counts those of each gold."""
    return sum(n for row, n in rows.items() if compute_score(source, text, row, verify_timeout=1)["acc"] == 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with eval/")
    parser.add_argument("--golds", type=int, default=200, help="golds of each evaluation set")
    parser.add_argument("--names", type=Path, help="class names, one a line")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    status = 0
    print(f"{'answers to':24}{'golds':>7}{'attacks':>9}{'best paid':>11}{'one class':>11}  best attack")
    for name, source, found, attacks, written in cases(args):
        rows = Counter(tuple(row) for row in found)
        honest = max(paid(source, rows, written.format(row[0])) for row in rows)
        best, attack = max((paid(source, rows, written.format(a)), a) for a in dict.fromkeys(attacks))
        status |= best > honest
        print(f"{name:24}{len(found):7}{len(set(attacks)):9}{best:11}{honest:11}  {attack[:60]!r}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
