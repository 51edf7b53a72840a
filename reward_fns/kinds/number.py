"""Numbers that are written out: 5, -5/2, 1 1/2, 1,800, 1.8 x 10^3, 0.(3). Exact, and compared in this process.

A decimal is right for a value that it is the correct rounding of, from six significant digits on.
"""

import re
from fractions import Fraction
from functools import lru_cache

from reward_fns.grammar import mark, outside
from reward_fns.kinds import Answer

KINDS = ()  # quantity.py compares them, with their units
DIGITS = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
FRACTION = rf"\\frac\s*(?:\{{\s*(-?{DIGITS})\s*\}}|([0-9]))\s*(?:\{{\s*(-?{DIGITS})\s*\}}|([0-9]))"
NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?P<open>\(?)(?:(?P<mixed>[0-9]+)(?:\s*(?=\\frac)|\s+(?=[0-9]+/)))?"
    rf"(?:{FRACTION}|\{{?(?P<over>{DIGITS})\}}?\s*/\s*\{{?(?P<under>-?{DIGITS})\}}?"
    rf"|(?P<plain>{DIGITS})(?:[eE](?P<e>[-+]?[0-9]{{1,3}}))?)\)?(?:\s*\*?\s*10\s*\^\s*\{{?\s*(?P<ten>[-+]?[0-9]{{1,3}})\s*\}}?)?"
)
TEN = re.compile(r"([-+]?)10\s*\^\s*\{?\s*([-+]?[0-9]{1,3})\s*\}?")
ROUNDED_DIGITS = 6
LONGEST = 400


def repeating(match: re.Match) -> str:
    """0.1(6) as a fraction."""
    whole, decimals, repeated = match[1], match[2], next(filter(None, match.groups()[2:]))
    above = int(whole + decimals + repeated) - int(whole + decimals or 0)
    return f"\\frac{{{above}}}{{{(10 ** len(repeated) - 1) * 10 ** len(decimals)}}}"


THOUSANDS = re.compile(
    r"(?<![0-9.,_^A-Za-z])(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}"
    r"|[1-9][0-9]{0,2}(?: [0-9]{3})+"
    r"|[0-9]{1,3}(?:'[0-9]{3})+|[0-9]{1,3}(?:_[0-9]{3})+)(?![0-9]|,[0-9]|'[0-9]| [0-9])"
)
# 1.234,5; 1.234.567; 0,5; 1.5 x 10^3; 1.5 E3; 0.3333...; 0.(3)
SPELLINGS = (
    (re.compile(r"^([-+]?[0-9]{1,3}(?:\.[0-9]{3})+),([0-9]+)$"), lambda m: m[1].replace(".", "") + "." + m[2]),
    (re.compile(r"^([-+]?[0-9]{1,3}(?:\.[0-9]{3}){2,})$"), lambda m: m[1].replace(".", "")),
    (re.compile(r"^([-+]?0),([0-9]+)$"), r"\1.\2"),
    (re.compile(r"(?<=[0-9])\s*[xX]\s*(?=10\s*\^)"), "*"),
    (re.compile(r"(?<=[0-9])\s*\*?\s*[eE]\s*\^?\s*([-+]?[0-9]{1,3})(?![0-9A-Za-z.])"), r"e\1"),
    (re.compile(r"([0-9]{0,20})\.([0-9]{0,20}?)([0-9]{1,6}?)\3+\s*\.\.\."), repeating),
    (
        re.compile(
            r"([0-9]{0,20})\.([0-9]{0,20})(?:\\(?:overline|bar|dot)\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))"
            r"|\(([0-9]+)\))(?![0-9])"
        ),
        repeating,
    ),
)


def joined(text: str) -> str:
    """The text with each of its numbers as one run of digits; within brackets a comma separates."""
    if len(text) > LONGEST or not any(map(str.isdigit, text)):
        return text
    for match in reversed(outside(text, THOUSANDS, "([{" if "\\{" in text else "([")):
        text = text[: match.start()] + re.sub(r"[, '_]", "", match[0]) + text[match.end() :]
    for pattern, replacement in SPELLINGS:
        text = pattern.sub(replacement, text)
    return text


@lru_cache(maxsize=65536)
def number(text: str) -> tuple[Fraction, int] | None:
    """(value, digits after the point) of a number that is written out; None for anything to be computed."""
    if match := TEN.fullmatch(text):
        return (-1 if match[1] == "-" else 1) * Fraction(10) ** int(match[2]), 0
    match = NUMBER.fullmatch(text) if len(text) <= LONGEST else None
    if match is None or text.count("(") != text.count(")") or text.count("{") != text.count("}"):
        return None
    above, below = match[4] or match[5] or match["over"], match[6] or match[7] or match["under"]
    try:
        value = Fraction(above) / Fraction(below) if below else Fraction(match["plain"].rstrip(".") or "0")
    except ZeroDivisionError:
        return None
    if match["mixed"] and (not below or "." in above + below):
        return None
    value = (value + int(match["mixed"] or 0)) * Fraction(10) ** (int(match["e"] or 0) + int(match["ten"] or 0))
    decimals = len((match["plain"] or "").partition(".")[2]) if not (match["e"] or match["ten"]) else 0
    return (-value if match["sign"] == "-" else value), decimals


def read(text: str, inner) -> Answer | None:
    return Answer("number", value) if mark(text) == "value" and (value := number(text)) else None


def equal(gold: tuple[Fraction, int], answer: tuple[Fraction, int], digits: int = ROUNDED_DIGITS) -> bool:
    """Whether two numbers are equal, or the one with fewer decimals is the rounding of the other."""
    (a, m), (b, n) = gold, answer
    if a == b:
        return True
    decimal, places, value = (a, m, b) if m and (m < n or not n) else (b, n, a)
    return m != n and significant(decimal, places) >= digits and abs(value - decimal) <= Fraction(1, 2 * 10**places)


def significant(decimal: Fraction, places: int) -> int:
    """How many significant digits a decimal has; 0 for a whole number."""
    return len(str(abs(decimal.numerator) * 10**places // decimal.denominator).lstrip("0")) if places else 0
