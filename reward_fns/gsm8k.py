"""GSM8K: the number after the last `####` or in the last `\\boxed{}`, whichever comes later, else (a setting) the
text's last.

Numbers are compared exactly: 1,800.00 is 1800, 50% is 50, 3/4 is 0.75, 18 thousand is 18000. A line that states no
single number (`18 or 20`, `18 + 5`) is wrong; a heading (`#### Check`, `#### 1. Count the eggs`) is no answer.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from reward_fns import extract, golds, number
from reward_fns.verdict import UnparsableGold, Verdict

_MARK = "####"
_HEADING = re.compile(r"(?:[0-9]{1,2}[.):]\s+|step\s*[0-9]{1,2}\b)(?=.{0,80}[A-Za-z]{3})", re.IGNORECASE)
_ANSWER_HEADING = re.compile(r"[*\s]*(?:the )?(?:final |correct )?(?:answer|ans|result)[*:\s]*$", re.IGNORECASE)
MOST_MARKS = 100


def judge(text: str, gold, settings) -> Verdict:
    values = _values(gold)
    answer = extract_number(text, settings.last_number)
    return Verdict(answer is not None and answer in values, "" if answer is None else _written(answer))


def check_gold(gold, settings) -> None:
    _values(gold)


def _values(gold) -> list[Fraction]:
    return [read_gold(text) for text in golds.texts(gold)]


@lru_cache(maxsize=65536)
def read_gold(gold: str) -> Fraction:
    """The gold number: of `18`, or of a whole solution that ends in `#### 18`."""
    value = number.read(gold.rpartition(_MARK)[2])
    if value is None:
        raise UnparsableGold(gold)
    return value


def extract_number(text: str, last_number: bool) -> Fraction | None:
    mark, line = _marked(text)
    if mark >= 0 and extract.last_box_start(text[mark:]) < 0:
        return number.read(line)
    boxes = extract.contents(text)
    if boxes is None:
        return number.last(text) if last_number else None
    return number.read(", ".join(boxes))


def _marked(text: str) -> tuple[int, str]:
    """(where the last `####` is that is no heading, its line); -1 if there is none."""
    end = len(text)
    for _ in range(MOST_MARKS):
        mark = text.rfind(_MARK, 0, end)
        if mark < 0:
            break
        rest = text[mark + len(_MARK) : min(end, mark + 2 * number.LONGEST_LINE)].lstrip(" #\t\n")
        line, _, below = rest.partition("\n")
        if line.isdigit():
            return mark, line
        if _ANSWER_HEADING.match(line):
            line = below.strip().partition("\n")[0]
        if any(c.isnumeric() or c == "\\" for c in line) and not _HEADING.match(line):
            return mark, line
        end = mark
    return -1, ""


def _written(value: Fraction) -> str:
    """For logs: 18, 0.75 or 1/3."""
    if value.denominator == 1:
        return str(value.numerator)
    return repr(float(value)) if Fraction(repr(float(value))) == value else str(value)
