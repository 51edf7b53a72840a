"""Every gold answer of the six evaluation sets rewritten in other notations, and altered in value.

    python examples/benchmark/rewards_golds.py --data DIR              # about 3 minutes on 2 cores
    python examples/benchmark/rewards_golds.py --data DIR --show 20    # with so many of the failures of each kind

DIR is that of rewards.py. A notation applies where it changes the text. Rewritten golds should be right, altered ones
wrong. Some alterations give the value back (the digit of an index, an order that does not matter); those that
math-verify cannot tell either are counted all the same. Exits with 1 below 99 % right or above 0.1 % of the altered
ones right.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from reward_fns import compute_score

MATH, GSM8K = "lighteval/MATH", "openai/gsm8k"
WORDS = dict(
    zip(
        ["2", "3", "4", "5", "6", "7", "8", "9"],
        ["two", "three", "four", "five", "six", "seven", "eight", "nine"],
        strict=True,
    )
)


def golds(data: Path) -> dict[str, list[list[str]]]:
    """The accepted golds of every row, by set."""
    folder = data / "eval"

    def rows(name: str) -> list[dict]:
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    return {
        "GSM8K": [[row["answer"].rpartition("####")[2].strip()] for row in rows("gsm8k_test.jsonl")],
        "MATH-500": [[row["answer"]] for row in rows("math500.jsonl")],
        "AIME24": [[str(row["answer"])] for row in rows("aime24.jsonl")],
        "AMC23": [[str(row["answer"])] for row in rows("amc23.jsonl")],
        "Minerva": [row["answer"] for row in json.loads((folder / "minerva.json").read_text())],
        "OlympiadBench": [row["final_answer"] for row in rows("olympiadbench.jsonl")],
    }


# ---- the same value in another notation ------------------------------------------------------------------------


def sub(pattern: str, replacement) -> Callable[[str], str]:
    return lambda gold: re.sub(pattern, replacement, gold)


def if_integer(write: Callable[[int], str], least: int = 0) -> Callable[[str], str]:
    """A notation for golds that are whole numbers of at least `least` in size."""

    def rewrite(gold: str) -> str:
        plain = gold.strip("$ \n").removesuffix(".0")
        plain = plain.replace(",", "") if re.fullmatch(r"-?[0-9]{1,3}(?:,[0-9]{3})+", plain) else plain
        return write(int(plain)) if re.fullmatch(r"-?[0-9]+", plain) and abs(int(plain)) >= least else gold

    return rewrite


def scientific(mark: str) -> Callable[[str], str]:
    """Numbers of 100 and more, or below 1, as a mantissa and a power of ten."""

    def rewrite(gold: str) -> str:
        plain = gold.strip("$ \n")
        if not re.fullmatch(r"-?[0-9]*\.?[0-9]+", plain) or float(plain) == 0 or 1 <= abs(float(plain)) < 100:
            return gold
        mantissa, exponent = f"{float(plain):.14e}".split("e")
        return mark.format(mantissa.rstrip("0").rstrip("."), int(exponent))

    return rewrite


def power_of_ten(mark: str) -> Callable[[str], str]:
    """a \\times 10^{b} as something else."""
    pattern = r"^\s*\$?(-?[0-9.]+) ?\\times ?10\^\{?(-?[0-9]+)\}?\$?\s*$"
    return lambda gold: re.sub(pattern, lambda m: mark.format(m[1], int(m[2])), gold)


def mixed(gold: str) -> str:
    match = re.fullmatch(r"\$?\\d?frac\{([0-9]+)\}\{([0-9]+)\}\$?", gold.strip())
    if match is None or int(match[1]) < int(match[2]) or int(match[1]) % int(match[2]) == 0:
        return gold
    whole, rest = divmod(int(match[1]), int(match[2]))
    return f"{whole}\\frac{{{rest}}}{{{match[2]}}}"


def in_words(template: str) -> Callable[[str], str]:
    return lambda gold: template.replace("?", gold) if not re.search(r"\\text|\\mbox|[a-z]{4}|where", gold) else gold


def no_spaces(gold: str) -> str:
    return gold if "text" in gold or "where" in gold else re.sub(r"(?<![A-Za-z]) +| +(?![A-Za-z])", "", gold)


def delimited(opening: str, closing: str) -> Callable[[str], str]:
    """As mathematics in a text, where the gold has no such delimiters within."""

    def rewrite(gold: str) -> str:
        inner = gold.strip()
        whole = inner.count("$") == 0 or (inner.count("$") == 2 and inner[0] == inner[-1] == "$")
        return opening + inner.strip("$") + closing if whole and "\\$" not in gold else gold

    return rewrite


NOTATIONS: dict[str, Callable[[str], str]] = {
    "dfrac": sub(r"\\frac(?![a-z])", r"\\dfrac"),
    "tfrac": sub(r"\\frac(?![a-z])", r"\\tfrac"),
    "frac without braces": sub(r"\\frac\{([0-9])\}\{([0-9])\}", r"\\frac\1\2"),
    "a/b": sub(r"^\$?\\d?frac\{([0-9]+)\}\{([0-9]+)\}\$?$", r"\1/\2"),
    "(a)/(b)": sub(r"^\$?\\frac\{([^{}]+)\}\{([^{}]+)\}\$?$", r"(\1)/(\2)"),
    "mixed number": mixed,
    "spaces": sub(r"(?<![\\A-Za-z])([=+*-]|,(?![0-9]{3}(?![0-9])|\\))(?![^{]*\\text)", r" \1 "),
    "no spaces": no_spaces,
    "thin spaces": sub(r", ?(?![0-9]{3}(?![0-9]))(?=[-0-9(\\])", r",\\,"),
    "left and right": lambda gold: gold.replace("\\left", "").replace("\\right", ""),
    "thousands: comma": if_integer(lambda n: f"{n:,}", 1000),
    "thousands: {,}": if_integer(lambda n: f"{n:,}".replace(",", "{,}"), 1000),
    "thousands: ,\\!": if_integer(lambda n: f"{n:,}".replace(",", ",\\!"), 1000),
    "thousands: thin space": if_integer(lambda n: f"{n:,}".replace(",", "\\,"), 1000),
    "thousands: space": if_integer(lambda n: f"{n:,}".replace(",", " "), 1000),
    "thousands: narrow space": if_integer(lambda n: f"{n:,}".replace(",", "\u202f"), 1000),
    "no thousands": sub(r"^(?:[0-9]{1,3})(?:,(?:\\!)? ?[0-9]{3})+$", lambda m: re.sub(r"[^0-9]", "", m[0])),
    "5.0": if_integer(lambda n: f"{n}.0"),
    "+5": if_integer(lambda n: f"+{n}", 1) ,
    "unicode minus": sub(r"-(?=[0-9])", "−"),
    "a.b e c": scientific("{}e{}"),
    "a.b \\times 10^c": scientific("{} \\times 10^{{{}}}"),
    "a.b \\cdot 10^c": scientific("{}\\cdot10^{{{}}}"),
    "power of ten as e": power_of_ten("{}e{}"),
    "power of ten with ×": power_of_ten("{} × 10^{{{}}}"),
    "power of ten with cdot": power_of_ten("{} \\cdot 10^{{{}}}"),
    "power of ten with x": power_of_ten("{}x10^{}"),
    "e as power of ten": sub(r"^\s*([0-9.]+)e(-?[0-9]+)\s*$", r"\1 \\times 10^{\2}"),
    "e+0": sub(r"^\s*([0-9.]+)e([0-9])\s*$", r"\1e+0\2"),
    "°": sub(r"\^ ?(?:\\circ|\{\\circ\})", "°"),
    "degrees": sub(r"^\$?([^,$]*?)\^ ?(?:\\circ|\{\\circ\})\$?$", r"\1 \\text{ degrees}"),
    "no degree": sub(r"^\$?([-0-9.]*)\^ ?(?:\\circ|\{\\circ\})\$?$", r"\1"),
    "base with braces": sub(r"^([0-9]+)_\{?([2-9])\}?$", r"\1_{\2}"),
    "base in words": sub(r"^([0-9]+)_\{?([2-9])\}?$", lambda m: f"{m[1]}_{{\\text{{{WORDS[m[2]]}}}}}"),
    "base written out": sub(r"^([0-9]+)_\{?([2-9])\}?$", r"\1 \\text{ base } \2"),
    "base, brackets": sub(r"^([0-9]+)_\{?([2-9])\}?$", r"(\1)_{\2}"),
    "percent in words": sub(r"^\$?([0-9.]+) ?\\?%\$?$", r"\1 percent"),
    "percent escaped": sub(r"^\$?([0-9.]+) ?\\?%\$?$", r"\1\\%"),
    "π": sub(r"\\pi(?![a-z])", "π"),
    "√": sub(r"\\sqrt ?(?:\{([0-9]+)\}|([0-9])(?![0-9]))", r"√\1\2"),
    "sqrt without braces": sub(r"\\sqrt\{([0-9])\}", r"\\sqrt\1"),
    "^{1/2}": sub(r"^\$?\\sqrt\{([0-9]+)\}\$?$", r"\1^{1/2}"),
    "∞": sub(r"\\infty", "∞"),
    "∪": sub(r"\\cup", "∪"),
    "open interval, French": sub(r"^\$?\((-?[^(),]*\\infty|[^(),]*), ?(\\infty)\)\$?$", r"]\1, \2["),
    "bmatrix": sub(r"pmatrix", "bmatrix"),
    "dollars": delimited("$", "$"),
    "\\( \\)": delimited("\\(", "\\)"),
    "displaystyle": in_words("\\displaystyle ?"),
    "full stop": lambda gold: gold.strip() + ".",
    "mathbf": if_integer(lambda n: f"\\mathbf{{{n}}}"),
    "textbf": if_integer(lambda n: f"\\textbf{{{n}}}"),
    "in brackets": if_integer(lambda n: f"({n})"),
    "the answer is": in_words("\\text{The answer is } ?"),
    "Answer:": in_words("\\text{Answer: } ?"),
    "x =": if_integer(lambda n: f"x = {n}"),
    "with a unit": if_integer(lambda n: f"{n} \\text{{ cm}}"),
    "units in a box": if_integer(lambda n: f"{n}\\text{{ units}}"),
    "text without command": sub(r"^\\text\{([A-Za-z]+)\}$", r"\1"),
    "text in bold": sub(r"^\\text\{([A-Za-z]+)\}$", r"\\textbf{\1}"),
    "option in brackets": sub(r"^\\text\{\(([A-E])\)\}$", r"(\1)"),
    "option alone": sub(r"^\\text\{\(([A-E])\)\}$", r"\1"),
    "list in braces": sub(r"^\$?(-?[0-9]+(?:, ?-?[0-9]{1,2})+)\$?$", r"\\{\1\\}"),
    "list with and": sub(r"^\$?(-?[0-9]+), ?(-?[0-9]{1,2})\$?$", r"\1 \\text{ and } \2"),
    "list turned around": sub(r"^\$?(-?[0-9]+), ?(-?[0-9]{1,2})\$?$", r"\2, \1"),
}  # fmt: skip


# ---- another value ---------------------------------------------------------------------------------------------


def next_digit(gold: str) -> str:
    """The last digit of the value, one higher; not of an index, a root or a function's name."""
    places = [m for m in re.finditer(r"[0-9]", gold) if not re.search(r"[_\[]\{?$", gold[: m.start()])]
    if not places:
        return gold
    place = places[-1]
    return gold[: place.start()] + str((int(place[0]) + 1) % 10) + gold[place.end() :]


def first_digit(gold: str) -> str:
    match = re.search(r"(?<![_\[{0-9.])[1-9]", gold)
    return gold[: match.start()] + str(int(match[0]) % 9 + 1) + gold[match.end() :] if match else gold


def other_sign(gold: str) -> str:
    plain = gold.strip("$ \n")
    if not re.fullmatch(r"-?(?:[0-9.,]+|\\d?frac\{?[0-9]+\}?\{?[0-9]+\}?|[0-9]*\\sqrt\{?[0-9]+\}?|[0-9]*\\pi)", plain):
        return gold
    return plain[1:] if plain.startswith("-") else "-" + plain if Fraction(0) != _number(plain) else gold


def _number(text: str) -> Fraction | None:
    return Fraction(text) if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text) else None


def other_base(gold: str) -> str:
    return re.sub(
        r"^([0-9]+_\{?)([2-9])(\}?)$", lambda m: m[1] + str(int(m[2]) % 9 + 1 if m[2] != "9" else 8) + m[3], gold
    )


def turned_point(gold: str) -> str:
    match = re.fullmatch(r"\$?(?:\\left)?\(([^(),]+),([^(),]+?)(?:\\right)?\)\$?", gold.strip())
    return f"({match[2]},{match[1]})" if match and match[1].strip() != match[2].strip() else gold


def as_set(gold: str) -> str:
    match = re.fullmatch(r"\$?\(([^(),]+),([^(),]+?)\)\$?", gold.strip())
    return f"\\{{{match[1]},{match[2]}\\}}" if match else gold


def times(power: int) -> Callable[[str], str]:
    return lambda gold: re.sub(r"(10\^\{?)(-?[0-9]+)(\}?)\s*$", lambda m: f"{m[1]}{int(m[2]) + power}{m[3]}", gold)


ALTERED: dict[str, Callable[[str], str]] = {
    "last digit": next_digit,
    "first digit": first_digit,
    "sign": other_sign,
    "base": other_base,
    "base left out": sub(r"^([0-9]+)_\{?[2-9]\}?$", r"\1"),
    "order of a point": turned_point,
    "set for a point": as_set,
    "closed for open": sub(r"^\$?\((.*)\)\$?$", r"[\1]"),
    "one item more": sub(r"^\s*\$?(-?[0-9]+(?:, ?-?[0-9]+)*)\$?\s*$", r"\1, 7"),
    "one item twice": sub(r"^\$?(-?[0-9]+)(, ?-?[0-9]{1,2})\$?$", r"\1, \1\2"),
    "power of ten": times(1),
    "power of ten, smaller": times(-2),
    "e": sub(r"^\s*([0-9.]+)e(-?[0-9]+)\s*$", lambda m: f"{m[1]}e{int(m[2]) + 1}"),
    "zero": lambda gold: "0" if gold.strip("$ \n") not in ("0", "0.0") else gold,
    "ten times": if_integer(lambda n: f"{n}0", 1),
    "thousand": if_integer(lambda n: f"{n} thousand", 1),
    "or": if_integer(lambda n: f"{n} \\text{{ or }} {n + 1}"),
    "not": if_integer(lambda n: f"\\text{{not }} {n}"),
    "range": if_integer(lambda n: f"{n} < x < {n + 2}"),
    "unit prefix": sub(r"cm(?= ?\}?\^?2?\}?$)", "mm"),
    "unit": sub(r"inches", "feet"),
    "cents for dollars": sub(r"^\\\$([0-9.,]+)$", r"\1 \\text{ cents}"),
    "letters turned": lambda gold: re.sub(r"^\\text\{([a-z]{4,})\}$", lambda m: m[1][::-1], gold),
    "inverse": sub(r"^\$?\\d?frac\{([0-9]+)\}\{([0-9]+)\}\$?$", r"\\frac{\2}{\1}"),
    "two decimals": sub(
        r"^\$?\\d?frac\{([0-9]+)\}\{([0-9]*[37]|[0-9]*[16]1)\}\$?$", lambda m: f"{int(m[1]) / int(m[2]):.2f}"
    ),
    "root left out": sub(r"^\$?([0-9]+) ?\\sqrt\{[0-9]+\}\$?$", r"\1"),
    "variable": sub(r"(?<![\\A-Za-z{])n(?![A-Za-z])", "q"),
}  # fmt: skip


def right(name: str, accepted: list[str], answer: str) -> bool:
    source = GSM8K if name == "GSM8K" else MATH
    return compute_score(source, f"So it is \\boxed{{{answer}}}", accepted)["acc"] == 1


def measure(sets: dict[str, list[list[str]]], rewriters: dict[str, Callable], show: int) -> tuple[int, int]:
    """Prints (right, tried) for each rewriter and returns their sums."""
    total = [0, 0]
    for title, rewrite in rewriters.items():
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        odd = []
        for name, rows in sets.items():
            for accepted in rows:
                answer = rewrite(accepted[0])
                if answer == accepted[0] or (rewriters is ALTERED and answer in accepted):
                    continue
                is_right = right(name, accepted, answer)
                counts[name][0] += is_right
                counts[name][1] += 1
                if is_right == (rewriters is ALTERED):
                    odd.append((name, accepted, answer))
        done, tried = (sum(c[i] for c in counts.values()) for i in range(2))
        total[0] += done
        total[1] += tried
        if tried:
            print(f"{title:28}{tried:8}{done:8}{done / tried:10.2%}", flush=True)
        for entry in odd[:show]:
            print("    ", *map(repr, entry))
    print(f"{'all':28}{total[1]:8}{total[0]:8}{total[0] / total[1]:10.2%}\n")
    return total[0], total[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with eval/")
    parser.add_argument("--show", type=int, default=0, help="print so many of the failures of each kind")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    sets = golds(args.data)
    print(f"{'rewritten':28}{'golds':>8}{'right':>8}")
    good, tried = measure(sets, {"as it stands": lambda gold: gold + " ", **NOTATIONS}, args.show)
    print(f"{'altered':28}{'golds':>8}{'right':>8}")
    bad, altered = measure(sets, ALTERED, args.show)
    return int(good / tried < 0.99 or bad / altered > 0.001)


if __name__ == "__main__":
    sys.exit(main())
