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
import importlib
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
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reward_fns import answer, compute_score, expression, grammar, gsm8k, guard, sources, units
from reward_fns.kinds import number

GSM8K, MATH = "openai/gsm8k", "lighteval/MATH"
NUMERALS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")


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


# The scorers: (gold, text) -> right or not.
def ours_gsm8k(gold: str, text: str) -> bool:
    return compute_score(GSM8K, text, gold, last_number=True)["acc"] == 1


def ours_math(gold, text: str) -> bool:
    return compute_score(MATH, text, gold)["acc"] == 1


def math_verify(gold: str, text: str) -> bool:
    from math_verify import parse, verify

    return verify(parse(f"\\boxed{{{gold}}}"), parse(text))


def verl(module: str, **settings) -> Callable[[str, str], bool]:
    """One of veRL's own scorers. veRL writes golds without commas."""

    def score(gold: str, text: str) -> bool:
        scorer = importlib.import_module(f"verl.utils.reward_score.{module}")
        return scorer.compute_score(text, gold.replace(",", "") if module == "gsm8k" else gold, **settings) == 1

    return score


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
    """Numbers of 100 and more, below 1, or with a power of ten already, as a mantissa and a power of ten."""

    def rewrite(gold: str) -> str:
        plain = gold.strip("$ \n")
        if power := re.fullmatch(r"(-?[0-9.]+) ?\\times ?10\^\{?(-?[0-9]+)\}?", plain):
            return mark.format(power[1], int(power[2]))
        if not re.fullmatch(r"-?[0-9]*\.?[0-9]+", plain) or float(plain) == 0 or 1 <= abs(float(plain)) < 100:
            return gold
        mantissa, exponent = f"{float(plain):.14e}".split("e")
        return mark.format(mantissa.rstrip("0").rstrip("."), int(exponent))

    return rewrite


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
        inner = gold.strip().strip("$")
        return gold if "$" in inner or gold.count("$") == 1 else opening + inner + closing

    return rewrite


COMMANDS = (("\\frac", "\\dfrac"), ("\\frac", "\\tfrac"), ("\\pi", "π"), ("\\infty", "∞"), ("\\cup", "∪"),
            ("pmatrix", "bmatrix"))  # fmt: skip
THOUSANDS = (",", "{,}", ",\\!", "\\,", " ", "\u202f")
WHOLE = ("{}.0", "({})", "\\mathbf{{{}}}", "\\textbf{{{}}}", "x = {}", "{} \\text{{ cm}}", "{}\\text{{ units}}")
SCIENTIFIC = ("{}e{}", "{} × 10^{{{}}}", "{} \\times 10^{{{}}}", "{}\\cdot10^{{{}}}", "{}x10^{}")
LISTED = (r"\1 \\text{ and } \2", r"\2, \1")
BASE = r"^([0-9]+)_\{?([2-9])\}?$"
NOTATIONS: dict[str, Callable[[str], str]] = {
    **{f"{old} as {new}": sub(re.escape(old) + "(?![a-z])", new.replace("\\", "\\\\")) for old, new in COMMANDS},
    "frac without braces": sub(r"\\frac\{([0-9])\}\{([0-9])\}", r"\\frac\1\2"),
    "a/b": sub(r"^\$?\\d?frac\{([0-9]+)\}\{([0-9]+)\}\$?$", r"\1/\2"),
    "(a)/(b)": sub(r"^\$?\\frac\{([^{}]+)\}\{([^{}]+)\}\$?$", r"(\1)/(\2)"),
    "mixed number": mixed,
    "spaces": sub(r"(?<![\\A-Za-z])([=+*-]|,(?![0-9]{3}(?![0-9])|\\))(?![^{]*\\text)", r" \1 "),
    "no spaces": no_spaces,
    "thin spaces": sub(r", ?(?![0-9]{3}(?![0-9]))(?=[-0-9(\\])", r",\\,"),
    "left and right": lambda gold: gold.replace("\\left", "").replace("\\right", ""),
    **{f"thousands: {m!r}": if_integer(lambda n, m=m: f"{n:,}".replace(",", m), 1000) for m in THOUSANDS},
    "no thousands": sub(r"^(?:[0-9]{1,3})(?:,(?:\\!)? ?[0-9]{3})+$", lambda m: re.sub(r"[^0-9]", "", m[0])),
    **{f"whole: {form}": if_integer(form.format) for form in WHOLE},
    "+5": if_integer(lambda n: f"{n:+}", 1),
    "unicode minus": sub(r"-(?=[0-9])", "−"),
    **{f"scientific: {m}": scientific(m) for m in SCIENTIFIC},
    "e as power of ten": sub(r"^\s*([0-9.]+)e(-?[0-9]+)\s*$", r"\1 \\times 10^{\2}"),
    "e+0": sub(r"^\s*([0-9.]+)e([0-9])\s*$", r"\1e+0\2"),
    "°": sub(r"\^ ?(?:\\circ|\{\\circ\})", "°"),
    "degrees": sub(r"^\$?([^,$]*?)\^ ?(?:\\circ|\{\\circ\})\$?$", r"\1 \\text{ degrees}"),
    "no degree": sub(r"^\$?([-0-9.]*)\^ ?(?:\\circ|\{\\circ\})\$?$", r"\1"),
    "base in words": sub(BASE, lambda m: f"{m[1]}_{{\\text{{{NUMERALS[int(m[2]) - 2]}}}}}"),
    **{f"base: {form}": sub(BASE, form) for form in (r"\1_{\2}", r"\1 \\text{ base } \2", r"(\1)_{\2}")},
    **{f"percent: {form}": sub(r"^\$?([0-9.]+) ?\\?%\$?$", form) for form in (r"\1 percent", r"\1\\%")},
    "√": sub(r"\\sqrt ?(?:\{([0-9]+)\}|([0-9])(?![0-9]))", r"√\1\2"),
    "sqrt without braces": sub(r"\\sqrt\{([0-9])\}", r"\\sqrt\1"),
    "^{1/2}": sub(r"^\$?\\sqrt\{([0-9]+)\}\$?$", r"\1^{1/2}"),
    "open interval, French": sub(r"^\$?\((-?[^(),]*\\infty|[^(),]*), ?(\\infty)\)\$?$", r"]\1, \2["),
    "dollars": delimited("$", "$"),
    "\\( \\)": delimited("\\(", "\\)"),
    "displaystyle": in_words("\\displaystyle ?"),
    "full stop": lambda gold: gold.strip() + ".",
    "the answer is": in_words("\\text{The answer is } ?"),
    "Answer:": in_words("\\text{Answer: } ?"),
    **{f"text: {form}": sub(r"^\\text\{([A-Za-z]+)\}$", form) for form in (r"\1", r"\\textbf{\1}")},
    **{f"option: {form}": sub(r"^\\text\{\(([A-E])\)\}$", form) for form in (r"(\1)", r"\1")},
    "list in braces": sub(r"^\$?(-?[0-9]+(?:, ?-?[0-9]{1,2})+)\$?$", r"\\{\1\\}"),
    **{f"list: {form}": sub(r"^\$?(-?[0-9]+), ?(-?[0-9]{1,2})\$?$", form) for form in LISTED},
}  # fmt: skip


def next_digit(gold: str) -> str:
    """The last digit of the value, one higher; not of an index, a root or a function's name."""
    places = [m for m in re.finditer(r"[0-9]", gold) if not re.search(r"[_\[]\{?$", gold[: m.start()])]
    return (
        gold[: places[-1].start()] + str((int(places[-1][0]) + 1) % 10) + gold[places[-1].end() :] if places else gold
    )


def first_digit(gold: str) -> str:
    return re.sub(r"(?<![_\[{0-9.])[1-9]", lambda digit: str(int(digit[0]) % 9 + 1), gold, count=1)


def other_sign(gold: str) -> str:
    plain = gold.strip("$ \n")
    if not re.fullmatch(r"-?(?:[0-9.,]+|\\d?frac\{?[0-9]+\}?\{?[0-9]+\}?|[0-9]*\\sqrt\{?[0-9]+\}?|[0-9]*\\pi)", plain):
        return gold
    return plain[1:] if plain.startswith("-") else gold if re.fullmatch(r"0+(?:\.0*)?", plain) else "-" + plain


def turned_point(gold: str) -> str:
    match = re.fullmatch(r"\$?(?:\\left)?\(([^(),]+),([^(),]+?)(?:\\right)?\)\$?", gold.strip())
    return f"({match[2]},{match[1]})" if match and match[1].strip() != match[2].strip() else gold


def times(power: int) -> Callable[[str], str]:
    return lambda gold: re.sub(r"(10\^\{?)(-?[0-9]+)(\}?)\s*$", lambda m: f"{m[1]}{int(m[2]) + power}{m[3]}", gold)


ALTERED: dict[str, Callable[[str], str]] = {
    "last digit": next_digit,
    "first digit": first_digit,
    "sign": other_sign,
    "base": sub(r"^([0-9]+_\{?)([2-9])(\}?)$", lambda m: m[1] + str(int(m[2]) % 9 + 1 if m[2] != "9" else 8) + m[3]),
    "base left out": sub(r"^([0-9]+)_\{?[2-9]\}?$", r"\1"),
    "order of a point": turned_point,
    "set for a point": sub(r"^\$?\(([^(),]+),([^(),]+?)\)\$?$", r"\\{\1,\2\\}"),
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
    total = Counter()
    for title, rewrite in rewriters.items():
        counts, odd = Counter(), []
        for name, accepted in ((name, accepted) for name, rows in sets.items() for accepted in rows):
            answer = rewrite(accepted[0])
            if answer == accepted[0] or (rewriters is ALTERED and answer in accepted):
                continue
            is_right = right(name, accepted, answer)
            counts.update(right=is_right, tried=1)
            if is_right == (rewriters is ALTERED):
                odd.append((name, accepted, answer))
        total += counts
        if counts:
            print(
                f"{title:34}{counts['tried']:8}{counts['right']:8}{counts['right'] / counts['tried']:10.2%}", flush=True
            )
        for entry in odd[:show]:
            print("    ", *map(repr, entry))
    print(f"{'all':34}{total['tried']:8}{total['right']:8}{total['right'] / total['tried']:10.2%}\n")
    return total["right"], total["tried"]


def rewritten(args: argparse.Namespace) -> int:
    """A notation applies where it changes the text. Some alterations give the value back."""
    sets = golds(args.data)
    print(f"{'rewritten':34}{'golds':>8}{'right':>8}")
    good, tried = measure(sets, {"as it stands": lambda gold: gold + " ", **NOTATIONS}, args.show)
    print(f"{'altered':34}{'golds':>8}{'right':>8}")
    bad, altered = measure(sets, ALTERED, args.show)
    return int(good / tried < 0.99 or bad / altered > 0.001)


# ---- attack: constants, lists, hedges, parts of names ----------------------------------------------------------
def joined(a: str, b: str) -> list[str]:
    """Two answers as one."""
    templates = (
        "{} or {}", "{}, {}", "{} and {}", "{}/{}", "{} & {}", "{}; {}", "{}. {}.", "{} ({})", "{}-{}", "{} {}",
        "{}{}", "either {} or {}", "{} not {}", "not {} but {}", "{}|{}", "\\{{{},{}\\}}", "({},{})", "[{},{}]",
        "{}\n{}", "{} = {}", "{} to {}", "between {} and {}", "{} \\pm {}", "{} \\text{{ or }} {}",
    )  # fmt: skip
    return [template.format(a, b) for template in templates]


def numbers() -> list[str]:
    """Constants, ranges and lists of numbers."""
    plain = [*map(str, range(-20, 301)), *map(str, range(300, 10_000, 100))]
    plain += [f"\\frac{{{a}}}{{{b}}}" for a in range(1, 8) for b in range(2, 9)]
    odd = [
        "", "x", "n", "0", "\\infty", "-\\infty", "\\mathbb{R}", "\\text{any}", "\\text{all}", "\\text{none}", "?", "*",
        "...", "e", "i", "\\pm 1", "\\pm 2", "1, 2, 3, \\ldots", "0 \\le x \\le 1000", "x > 0", "(0, 1000)", "[0,1000]",
        "(-\\infty,\\infty)", "x = x", "0 = 0", "\\text{the answer}", "answer", "N/A", "NaN", "nan", "inf", "0/0",
        "\\frac{0}{0}", "\\emptyset", "\\{\\}", "()", "[]", "\\text{cm}", "\\%", "\\$", "^\\circ", "_5", "10^{-10}",
        "10^{-100}", "0.0000001", "1e-9", "1e9", "\\frac{1}{2^{99}}",
    ]  # fmt: skip
    lists = [", ".join(map(str, range(a, a + n))) for a in (0, 1, 2) for n in (2, 3, 5, 10, 20, 100)]
    lists += [f"\\{{{text}\\}}" for text in lists] + [text.replace(", ", " or ") for text in lists]
    return plain + odd + lists


def hedges(common: list[str]) -> list[str]:
    alone = ("not {}", "at least {}", "about {}, maybe more", "{}?", "{} or so", "{} (or not)", "-{0} or {0}")
    pairs = [text for a, b in itertools.permutations(common, 2) for text in joined(a, b)]
    return pairs + [template.format(a) for a in common for template in alone]


def names() -> list[str]:
    """Made up in the shape of the real ones: maker, model, body, year."""
    rng = random.Random(0)
    makers = ("Audi", "Bentley", "Dodge", "Volvo", "Honda", "Aston Martin", "Ford")
    models = ("S4", "TTS", "Caliber", "GT", "Ram Pickup 3500", "X6", "Civic", "100", "Continental")
    bodies, years = ("Sedan", "Coupe", "Wagon", "SUV", "Convertible", "Crew Cab"), ("2007", "2009", "2012")
    # One year each: where two classes differ in nothing else, classname.py asks for the year by name.
    cars = [f"{m} {n} {b} {rng.choice(years)}" for m in makers for n in models for b in bodies if rng.random() < 0.12]
    return [*cars, "737-200", "737-300", "A320", "A319", "DC-10", "MD-80", "Model B200", "F-16A/B", "Saab 340", "pug",
            "Siamese", "Ragdoll", "american bulldog", "american pit bull terrier", "english setter", "rose",
            "sweet pea", "english cocker spaniel", "beagle", "bird of paradise", "english marigold"]  # fmt: skip


def parts(all_names: list[str]) -> set[str]:
    """Words, pairs of words and beginnings of the names, and pairs of names."""
    found = {"", "a", "car", "dog", "flower", "the", "sedan2012", "unknown", " ".join(all_names), ", ".join(all_names)}
    for name in all_names:
        words = name.split()
        found.update(words, *((" ".join(words[:i]), "".join(words[i:])) for i in range(1, len(words))))
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
        rows, source = rng.sample(rows, min(len(rows), args.golds)), GSM8K if name == "GSM8K" else MATH
        yield name, source, rows, numbers() + hedges(common(rows)), BOX
        if name in ("GSM8K", "MATH-500"):
            between = (" or ", ", ", " and ", "", "\n", " / ", "$, $", " \\text{ or } ")
            pairs = itertools.product(itertools.permutations(common(rows), 2), between)
            yield f"{name}, two boxes", source, rows, [f"{a}}}{words}\\boxed{{{b}" for (a, b), words in pairs], BOX
    yield "GSM8K, ####", GSM8K, sets["GSM8K"][: args.golds], numbers() + hedges(common(sets["GSM8K"])), "#### {}"
    letters = [[f"({letter})"] for letter in "ABCD"] * 5
    texts = "A B C D AB ABCD (A)(B) a dog|A dog|A, B|A or B|not A|all|none|(A) (B) (C) (D)|A/B/C/D|A B C D|A. B. C. D."
    yield "choice, letters", sources.CV_BENCH, letters, [*texts.split("|"), *hedges(["A", "B", "(C)", "D"])], ANSWER
    words = [[word] for word in ("left", "right", "up", "down", "yes", "no", "moved closer", "3", "1.5 meters")] * 3
    yield "choice, texts", sources.SAT, words, hedges(["left", "right", "yes", "no", "3"]) + numbers(), ANSWER
    values = [[f"{rng.choice((30, 45, 60, 90, 120, 145))}°"] for _ in range(60)] + [["5√3"], ["2π"], ["3.5"]]
    yield "GEOQA", sources.GEOQA_TRAIN, values, numbers() + hedges(["90", "60°", "45"]), ANSWER
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
    answering = (answer.read, expression._readable, expression._same, guard._asked)
    for function in (*answering, grammar.mark, gsm8k.read_gold, number.number, units.read):
        function.cache_clear()
    for pid in guard.pool().processes()[1:]:
        os.kill(pid, signal.SIGKILL)
    for other in ("\\sqrt{2} + 1", "\\frac{2}{x}"):
        guard.equal(("\\frac{3}{x}",), (other,))


def loads(data: Path):
    """(name, items, how many answers a question has, the scorers)."""
    theirs = {"math_verify": math_verify, "verl_math_verify": verl("math_verify")}
    for mark, method in (("A:", "flexible"), ("####", "strict")):
        scorers = {**theirs, "ours": ours_gsm8k, "verl_gsm8k": verl("gsm8k", method=method)}
        yield f"GSM8K, {mark}", gsm8k_solutions(data, mark), 4, scorers
    yield "MATH", math_outputs(data), 8, {**theirs, "ours": ours_math, "verl_math_reward": verl("math_reward")}


def seconds(score, items: list, answers: int, threads: int) -> float:
    """For the items in one pass (answers = 1), or the first answer to every question, then the second, ..."""
    total = 0.0
    for part in [items[i::answers] for i in range(answers)]:
        if score in (ours_gsm8k, ours_math):
            forget()
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            list(pool.map(lambda item: score(*item[:2]), part) if threads > 1 else (score(*item[:2]) for item in part))
            total += time.perf_counter() - start
    return total


def throughput(args: argparse.Namespace) -> int:
    print(f"{'set':14}{'scorer':24}{'golds':>10}{'answers/s':>12}{'ratio':>8}{'labels':>9}")
    for load, items, answers, scorers in loads(args.data):
        base: dict[str, float] = {}
        for name, score in scorers.items():
            labels = sum(score(gold, text) == label for gold, text, label in items) / len(items)  # also warms up
            threads = 8 if name == "verl_math_verify" else 1  # it has a pool of its own
            for golds_are, parts in (("repeated", 1), ("once", answers)):
                took = statistics.median(seconds(score, items, parts, threads) for _ in range(args.repeat))
                rate = len(items) / took
                ratio = rate / base.setdefault(golds_are, rate)
                print(f"{load:14}{name:24}{golds_are:>10}{rate:12.0f}{ratio:7.1f}x{labels:9.2%}", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = {"agreement": agreement, "golds": rewritten, "attack": attack, "throughput": throughput}
    parser.add_argument("study", choices=studies)
    parser.add_argument("--data", type=Path, required=True, help="folder with verifier/ and eval/")
    parser.add_argument("--others", type=int, default=10, help="agreement: other golds that each answer is tried on")
    parser.add_argument("--show", type=int, default=0, help="golds: print so many of the failures of each kind")
    parser.add_argument("--golds", type=int, default=200, help="attack: golds of each evaluation set")
    parser.add_argument("--repeat", type=int, default=3, help="throughput: each figure is the median of so many runs")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    return studies[args.study](args)


if __name__ == "__main__":
    sys.exit(main())
