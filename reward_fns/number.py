"""Plain numbers in text, exactly: signs, thousands, decimals, fractions, mixed numbers, currency, percent, units."""

from __future__ import annotations

import re
from fractions import Fraction

from reward_fns import formula, kinds

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,12}|[0-9]{1,40})"
_CURRENCY = r"[$€£¥₹]"
# Every repetition is bounded and digits are ASCII: "４2" is not 2. What follows must not continue the number, nor
# make it a term of a sum or a product: "100 - 20 = 80" is not 100.
NUMBER = re.compile(
    r"(?=[-−+$€£¥₹.0-9])"  # says no more than what follows, but at once where no number begins
    rf"(?:(?P<sign>[-−+])[ ]?)?(?:{_CURRENCY}[ ]?)?(?P<late_sign>-?)"
    rf"(?:(?P<whole>{_DIGITS})(?P<decimals>\.[0-9]{{1,40}})?|(?P<bare>\.[0-9]{{1,40}}))"
    r"(?:[ ](?P<mixed>[0-9]{1,9}/[0-9]{1,9})|[ ]?/[ ]?(?P<under>[0-9]{1,40}))?"
    r"(?![0-9]|[.,:][0-9]|[ ]{0,2}[-+*/^=×÷][ ]{0,2}[$€£¥₹]?[0-9(])"
)
# A number does not begin inside a word or a number: neither x2 nor the 5 of 1.5.
_BEFORE = re.compile(r"(?<![\w.,])")
TAIL = 2000
LONGEST_NUMBER = 100
LONGEST_LINE = 400
_PLAIN = re.compile(r"(-?(?:[0-9]{1,40}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,12})(?:\.[0-9]{1,40})?)\.?")
# Letters that count, tight behind a number: 18k is 18 thousand.
_LETTER = re.compile(r"(.{0,30}[0-9])(k|K|M|mn|B|bn)\b(.{0,100})")
_LETTERS = {"k": "thousand", "K": "thousand", "M": "million", "mn": "million", "B": "billion", "bn": "billion"}


def read(text: str) -> Fraction | None:
    """The number that a line or the content of a box states, in any notation; None for none, for several, or for a
    sum."""
    text = text.strip()
    if match := _PLAIN.fullmatch(text):
        digits = match[1].replace(",", "")
        return Fraction(digits if "." in digits else int(digits))  # of text it takes ten times as long
    return _stated(text) if len(text) <= LONGEST_LINE else None


def _stated(text: str) -> Fraction | None:
    if match := _LETTER.fullmatch(text):
        text = f"{match[1]} {_LETTERS[match[2]]} {match[3]}"
    answer = kinds.read(text)
    if answer.kind == "option" and answer.parts[1]:
        answer = kinds.read(answer.parts[1])  # (A) 5
    answer = answer.other or answer
    if answer.kind != "formula" or not formula.is_stated(answer.parts[0]):
        return None
    return formula.constant(answer.parts[0])


def last(text: str) -> Fraction | None:
    """The last number of the text, at most TAIL characters before its end; None if there is none."""
    end = len(text)
    stop = max(0, end - TAIL)
    while end > stop and text[end - 1] not in "0123456789":
        end -= 1
    found = None
    for match in NUMBER.finditer(text, max(stop, end - LONGEST_NUMBER)):
        if _BEFORE.match(text, match.start()):
            found = match
    return _value(found) if found else None


def _value(match: re.Match) -> Fraction | None:
    if match["sign"] and match["late_sign"]:
        return None
    whole, decimals = (match["whole"] or "0").replace(",", ""), match["decimals"] or match["bare"]
    value = Fraction(whole + decimals if decimals else int(whole))  # of text it takes ten times as long
    if match["mixed"]:
        over, under = map(int, match["mixed"].split("/"))
        if under == 0:
            return None
        value += Fraction(over, under)
    elif match["under"]:
        if int(match["under"]) == 0:
            return None
        value /= int(match["under"])
    return -value if match["sign"] in ("-", "−") or match["late_sign"] else value
