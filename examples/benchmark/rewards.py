"""How right, how fast and how safe the rewards are. DIR is a folder with eval/ and verifier/.

    python examples/benchmark/rewards.py --data DIR agreement    # with labels and with math-verify; 5 minutes
    python examples/benchmark/rewards.py --data DIR golds        # every gold rewritten, and altered in value; 3 minutes
    python examples/benchmark/rewards.py --data DIR attack       # what answers that answer nothing earn; 15 minutes
    python examples/benchmark/rewards.py --data DIR throughput   # against math-verify and veRL; 5 minutes

`verifier/gsm8k_model_solutions.jsonl` is openai/grade-school-math's, each solution with OpenAI's label;
`verifier/math_model_solutions.jsonl` is Qwen2.5-Math's, 8 outputs a question with a rule-based grader's labels. Minutes
on 2 cores. Exits with 1 where golds are read worse than 99 % or an attack is paid more than one class.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import re
import signal
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

from reward_fns import answer, compute_score, expression, grammar, gsm8k, guard, sources, units
from reward_fns.kinds import number

GSM8K, MATH = "openai/gsm8k", "lighteval/MATH"
NUMERALS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = {str(i): word for i, word in enumerate(NUMERALS, 2)}


# ---- data: lists of (gold, text, label), the answers to one question next to each other ------------------------


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def gsm8k_solutions(data: Path, mark: str) -> list[tuple[str, str, bool]]:
    """Solutions that end in "A: n", or with `####` in place of "A:"."""
    items = []
    for row in jsonl(data / "verifier/gsm8k_model_solutions.jsonl"):
        gold = row["ground_truth"].rpartition("A:")[2].strip()
        solutions = [value for value in row.values() if isinstance(value, dict)]
        items += [(gold, s["solution"].replace("\nA: ", f"\n{mark} "), s["is_correct"]) for s in solutions]
    return items


def math_outputs(data: Path) -> list[tuple[str, str, bool]]:
    rows = jsonl(data / "verifier/math_model_solutions.jsonl")
    return [(row["gt"], text, label) for row in rows for text, label in zip(row["code"], row["score"], strict=True)]


def golds(data: Path) -> dict[str, list[list[str]]]:
    """The accepted golds of every row, by evaluation set."""
    folder = data / "eval"
    return {
        "GSM8K": [[row["answer"].rpartition("####")[2].strip()] for row in jsonl(folder / "gsm8k_test.jsonl")],
        "MATH-500": [[row["answer"]] for row in jsonl(folder / "math500.jsonl")],
        "AIME24": [[str(row["answer"])] for row in jsonl(folder / "aime24.jsonl")],
        "AMC23": [[str(row["answer"])] for row in jsonl(folder / "amc23.jsonl")],
        "Minerva": [row["answer"] for row in json.loads((folder / "minerva.json").read_text())],
        "OlympiadBench": [row["final_answer"] for row in jsonl(folder / "olympiadbench.jsonl")],
    }


# ---- the scorers: (gold, text) -> right or not -----------------------------------------------------------------


def ours_gsm8k(gold: str, text: str) -> bool:
    return compute_score(GSM8K, text, gold, last_number=True)["acc"] == 1


def ours_math(gold, text: str) -> bool:
    return compute_score(MATH, text, gold)["acc"] == 1


def math_verify(gold: str, text: str) -> bool:
    from math_verify import parse, verify

    return verify(parse(f"\\boxed{{{gold}}}"), parse(text))


def verl_math_verify(gold: str, text: str) -> bool:
    from verl.utils.reward_score import math_verify

    return math_verify.compute_score(text, gold) == 1


def verl_gsm8k(gold: str, text: str) -> bool:
    from verl.utils.reward_score import gsm8k

    # veRL writes golds without commas.
    return gsm8k.compute_score(text, gold.replace(",", ""), method="strict" if "####" in text else "flexible") == 1


def verl_math_reward(gold: str, text: str) -> bool:
    from verl.utils.reward_score import math_reward

    return math_reward.compute_score(text, gold) == 1


# ---- agreement -------------------------------------------------------------------------------------------------


def agreement(args: argparse.Namespace) -> int:
    print(f"{'set':44}{'answers':>9}{'labels':>10}{'math-verify':>13}{'of others':>11}")
    rng, odd = random.Random(0), []
    for name, items, score in (
        ('GSM8K solutions as they are ("A: n")', gsm8k_solutions(args.data, "A:"), ours_gsm8k),
        ("GSM8K solutions with ####", gsm8k_solutions(args.data, "####"), ours_gsm8k),
        ("MATH outputs", math_outputs(args.data), ours_math),
    ):
        all_golds = sorted({gold for gold, _, _ in items})
        with_labels = with_theirs = stolen = 0
        for gold, text, label in items:
            ours, theirs = score(gold, text), math_verify(gold, text)
            with_labels += ours == label
            with_theirs += ours == theirs
            if not ours == label == theirs:
                odd.append((name, gold, text[-70:], f"label {label}, math-verify {theirs}, ours {ours}"))
            for other in rng.sample(all_golds, args.others):  # two questions may have one answer: math-verify says so
                stolen += score(other, text) and not score(gold, text) and not math_verify(other, text)
        n = len(items)
        print(f"{name:44}{n:9}{with_labels / n:10.2%}{with_theirs / n:13.2%}{stolen:11}", flush=True)
    for name, rows in golds(args.data).items():
        itself = sum(right(name, accepted, accepted[0]) for accepted in rows)
        print(f"{name + ', each gold against itself':44}{len(rows):9}{itself / len(rows):10.2%}")
    for entry in odd:
        print("  {}: gold {!r}, answer {!r}: {}".format(*entry))
    return 0


# ---- golds: the same value in another notation, and another value ----------------------------------------------


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
    "variable": lambda gold: gold if "(n)" in gold else re.sub(r"(?<![\\A-Za-z{])n(?![A-Za-z])", "q", gold),
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


def rewritten(args: argparse.Namespace) -> int:
    """A notation applies where it changes the text. Some alterations give the value back."""
    sets = golds(args.data)
    print(f"{'rewritten':28}{'golds':>8}{'right':>8}")
    good, tried = measure(sets, {"as it stands": lambda gold: gold + " ", **NOTATIONS}, args.show)
    print(f"{'altered':28}{'golds':>8}{'right':>8}")
    bad, altered = measure(sets, ALTERED, args.show)
    return int(good / tried < 0.99 or bad / altered > 0.001)


# ---- attack: constants, lists, hedges, parts of names ----------------------------------------------------------


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


def names() -> list[str]:
    """Made up in the shape of the real ones: maker, model, body, year."""
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
    classes = names()
    yield "class names", sources.CARS, [[name] for name in classes], sorted(parts(classes)), ANSWER


def paid(source: str, rows: dict[tuple[str, ...], int], text: str) -> int:
    """For how many rows the text is right; `rows` counts those of each gold."""
    return sum(n for row, n in rows.items() if compute_score(source, text, row, verify_timeout=1)["acc"] == 1)


def attack(args: argparse.Namespace) -> int:
    """The best attack may be paid no more often than the best honest answer, one class: the commonest gold itself."""
    status = 0
    print(f"{'answers to':24}{'golds':>7}{'attacks':>9}{'best paid':>11}{'one class':>11}  best attack")
    for name, source, found, attacks, written in cases(args):
        rows = Counter(tuple(row) for row in found)
        honest = max(paid(source, rows, written.format(row[0])) for row in rows)
        best, text = max((paid(source, rows, written.format(a)), a) for a in dict.fromkeys(attacks))
        status |= best > honest
        print(f"{name:24}{len(found):7}{len(set(attacks)):9}{best:11}{honest:11}  {text[:60]!r}", flush=True)
    return status


# ---- throughput ------------------------------------------------------------------------------------------------


def forget() -> None:
    """Empties every cache of ours: this process's, and the workers' by having fresh ones forked. As in training, and as
    plain math-verify is here, sympy is warm: the fresh worker has compared other answers before.
    """
    cached = [expression._readable, expression._same, answer.read, grammar.mark, number.number]
    cached += [gsm8k.read_gold, units.read, guard._asked]
    for function in cached:
        function.cache_clear()
    for pid in guard.pool().processes()[1:]:
        os.kill(pid, signal.SIGKILL)
    for other in ("\\sqrt{2} + 1", "\\frac{2}{x}"):
        guard.equal(("\\frac{3}{x}",), (other,))


LOADS = {  # a question's answers
    "GSM8K, A: n": (
        lambda data: gsm8k_solutions(data, "A:"),
        4,
        (math_verify, ours_gsm8k, verl_math_verify, verl_gsm8k),
    ),
    "GSM8K, ####": (
        lambda data: gsm8k_solutions(data, "####"),
        4,
        (math_verify, ours_gsm8k, verl_math_verify, verl_gsm8k),
    ),
    "MATH": (math_outputs, 8, (math_verify, ours_math, verl_math_verify, verl_math_reward)),
}


def seconds(score, items: list, answers: int, threads: int) -> float:
    """For the items in one pass (answers = 1), or the first answer to every question, then the second, ..."""
    total = 0.0
    for part in [items[i::answers] for i in range(answers)]:
        if score in (ours_gsm8k, ours_math):
            forget()
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            if threads == 1:
                for gold, text, _ in part:
                    score(gold, text)
            else:
                list(pool.map(lambda item: score(*item[:2]), part))
            total += time.perf_counter() - start
    return total


def throughput(args: argparse.Namespace) -> int:
    print(f"{'set':14}{'scorer':24}{'golds':>10}{'answers/s':>12}{'ratio':>8}{'labels':>9}")
    for load, (read, answers, scorers) in LOADS.items():
        items, base = read(args.data), {}
        for score in scorers:
            labels = sum(score(gold, text) == label for gold, text, label in items) / len(items)  # also warms up
            threads = 8 if score is verl_math_verify else 1  # it has a pool of its own
            for golds_are, parts in (("repeated", 1), ("once", answers)):
                took = statistics.median(seconds(score, items, parts, threads) for _ in range(args.repeat))
                rate = len(items) / took
                ratio = rate / base.setdefault(golds_are, rate)
                print(f"{load:14}{score.__name__:24}{golds_are:>10}{rate:12.0f}{ratio:7.1f}x{labels:9.2%}", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = {"agreement": agreement, "golds": rewritten, "attack": attack, "throughput": throughput}
    parser.add_argument("study", choices=studies)
    parser.add_argument("--data", type=Path, required=True, help="folder with verifier/ and eval/")
    parser.add_argument(
        "--others", type=int, default=10, help="agreement: golds of other items that each answer is tried on"
    )
    parser.add_argument("--show", type=int, default=0, help="golds: print so many of the failures of each kind")
    parser.add_argument("--golds", type=int, default=200, help="attack: golds of each evaluation set")
    parser.add_argument("--repeat", type=int, default=3, help="throughput: each figure is the median of so many runs")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    return studies[args.study](args)


if __name__ == "__main__":
    sys.exit(main())
