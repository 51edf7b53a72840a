"""A value with a unit, a currency, a percent sign, or the words of what is counted.

Upright type is a unit, italic a letter: notation.plain puts a space in front of what is upright, so `12 m` and
`12\\text{m}` are twelve metres and `12m` is twelve times m. Where the other answer is a formula with letters, `12 m`
is one, too. A unit that is left out is no fault; of two units the values are converted.
"""

import re
from dataclasses import replace
from fractions import Fraction

from reward_fns import units, words
from reward_fns.grammar import mark, trimmed
from reward_fns.kinds import Answer, number, series
from reward_fns.kinds.formula import TRIGONOMETRIC, letters, written

KINDS = ("number", "formula")
# Where the unit begins: behind a space, or tight behind a number if it is a sign or has two letters.
START = re.compile(
    r"(?<=[0-9)}\]°!%A-Za-z])\s(?=[A-Za-z°$€£¥₹¢₩₽%\\'\"])|(?<=[0-9)}\]])(?=[A-Za-z]{2}|[°$€£¥₹¢₩₽%'\"]|\\mu)"
)
UNIT = re.compile(
    r"(?:\s*(?:[A-Za-z]+(?:['-][A-Za-z]+)*'?(?![A-Za-z'])\.?|°\s*[CF]?(?![A-Za-z])|\\(?:mu|Omega)\s?|[$€£¥₹¢₩₽%]"
    r"|''|\"|[/*]\s*(?=[A-Za-z]))(?:\s*\^\s*\{?\s*-?[0-9]\s*\}?)?)+"
)
FRACTION_OF_UNITS = re.compile(
    r"(.*[0-9}])\s*\\frac\s*\{\s*([A-Za-z]+[0-9^]*)\s*\}\s*\{\s*([A-Za-z]+(?:\s*\^\s*\{?[0-9]\}?)?)\s*\}"
)
RAISED = {"squared": "^2", "cubed": "^3", "factorial": "!"}
JOINING = {"per", "square", "cubic", "squared", "cubed", "sq", "a", "an", "of"}
NO_UNIT = {"and", "or", "to", "base", "binary", "ternary", "octal", "decimal", "hexadecimal", "mod", "noon", "midnight"}


def read(text: str, inner) -> Answer | None:
    if mark(text) != "value" or number.number(text):
        return None
    rest, currency = units.prefix(text)
    if currency:
        answer = inner(trimmed(rest))
        return replace(answer, unit=answer.unit or currency, text=text) if answer.kind in KINDS else None
    value, phrase = parted(text)
    if not value:
        return None
    first = phrase.split()[0].lower()
    if first in words.TIMES and len(first) > 1:  # 5 million euros
        scaled = number.number(value)
        rest = phrase[len(first) :]
        return scaled and replace(inner(f"{scaled[0] * Fraction(words.TIMES[first])}{rest}"), text=text)
    if phrase in RAISED:
        return inner(f"({value}){RAISED[phrase]}")
    answer = inner(value)
    if answer.unit or answer.kind not in (*KINDS, "tuple", "ratio"):
        return None
    if phrase == "per cent" or units.PERCENT & {phrase, *re.findall("[a-z]+", phrase.lower())}:
        phrase = "%"
    return replace(answer, unit="inches" if phrase in ("''", '"') else phrase, text=text)


def parted(text: str) -> tuple[str, str]:
    """(value, unit) of a text that ends in a unit or in words; ("", "") for any other."""
    ratio = FRACTION_OF_UNITS.fullmatch(text)
    if ratio and all(map(units.is_unit, re.findall("[A-Za-z]+", f"{ratio[2]} {ratio[3]}"))):
        return ratio[1], f"{ratio[2]}/{ratio[3]}"
    starts = START.finditer(text, max(0, len(text) - units.LONGEST))
    start = next((m.start() for m in starts if UNIT.fullmatch(text, m.end())), 0)
    phrase = text[start:].strip()
    found = re.findall(r"\\?[A-Za-z]+", phrase)
    letters_only = len(found) > 1 and all(len(w) == 1 for w in found) and not re.search(r"[/^*]", phrase)
    degrees = phrase.startswith("°") and TRIGONOMETRIC.search(text)  # \\sin 30°
    if not start or letters_only or degrees or not all(map(may_be_unit, found)):
        return "", ""
    return trimmed(text[:start]), phrase


def may_be_unit(word: str) -> bool:
    """A unit, or a word of what is counted."""
    if units.is_unit(word) or word.lower() in JOINING | units.PERCENT | NO_UNIT:
        return word.lower() not in NO_UNIT
    return not word.startswith("\\") and (words.is_word(word) or (len(word) > 4 and word.islower()))


# ---- comparison of values, with or without a unit


def view(answer: Answer, compare) -> Answer | None:
    """A list or a set as the one value that it may stand for."""
    return answer if answer.kind in KINDS else series.as_value(answer, compare)


def same(gold: Answer, answer: Answer, compare) -> bool:
    """Whether two values (`number` or `formula`) are equal, with their units."""
    for a, b in ((gold, answer), (answer, gold)):
        if a.kind == "formula" and letters(a.parts[0]) and len(b.unit) == 1 and b.unit.isalpha() and not a.unit:
            return compare.formulas(a.parts[0], f"({written(b)}){b.unit}")  # 12 m
    percent, factor = [a.unit == "%" for a in (gold, answer)], Fraction(1)
    if percent[0] != percent[1] and units.read(gold.unit + answer.unit) is not None:
        return False
    if not any(percent) and gold.unit and answer.unit and compare.settings.compare_units:
        mine, theirs = units.read(gold.unit), units.read(answer.unit)
        if mine and theirs:
            if mine.measures != theirs.measures:
                return False
            factor = theirs.size / mine.size
    if equal(gold, answer, factor, compare):
        return True
    if percent[0] != percent[1] and compare.settings.percent_as_fraction:
        return equal(gold, answer, Fraction(1, 100) if percent[1] else Fraction(100), compare)
    return in_radians(gold, answer, compare) or in_radians(answer, gold, compare)


def in_radians(degrees: Answer, radians: Answer, compare) -> bool:
    """45° is \\pi/4, and \\pi/4 rad."""
    if units.read(degrees.unit) != units.read("°") or "\\pi" not in written(radians):
        return False
    plain = radians.unit in ("", "rad", "radian", "radians")
    return plain and compare.formulas(written(degrees), f"\\frac{{180}}{{\\pi}}({written(radians)})")


def equal(gold: Answer, answer: Answer, factor: Fraction, compare) -> bool:
    """gold = factor · answer."""
    if gold.kind == answer.kind == "number":
        return number.equal(gold.parts, (answer.parts[0] * factor, answer.parts[1]))
    decimal = next((x.parts for x in (gold, answer) if x.kind == "number" and x.parts[1]), None)
    rounded = decimal is not None and number.significant(*decimal) >= number.ROUNDED_DIGITS
    tolerance = 0.5 * 10.0 ** -decimal[1] if rounded else 0.0
    return compare.formulas(written(gold), written(answer), factor, tolerance)
