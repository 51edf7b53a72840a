"""GSM8K: the number after the last `####` or in the last `\\boxed{}`, whichever comes later, else (a setting) the
text's last.

Numbers are compared exactly: 1,800.00 is 1800, 50% is 50, 3/4 is 0.75, 18 thousand is 18000. A line that states no
single number (`18 or 20`, `18 + 5`) is wrong; a heading (`#### Check`, `#### 1. Count the eggs`) is no answer.
"""

import re
from fractions import Fraction
from functools import lru_cache

from reward_fns import answer, extract, golds
from reward_fns.kinds import relation
from reward_fns.kinds.number import number
from reward_fns.verdict import UnparsableGold, Verdict

_MARK = "####"
_HEADING = re.compile(r"(?:[0-9]{1,2}[.):]\s+|step\s*[0-9]{1,2}\b)(?=.{0,80}[A-Za-z]{3})", re.IGNORECASE)
_ANSWER_HEADING = re.compile(r"[*\s]*(?:the )?(?:final |correct )?(?:answer|ans|result)[*:\s]*$", re.IGNORECASE)
MOST_MARKS = 100
LONGEST_LINE = 400
TAIL, LONGEST_NUMBER = 2000, 100
# Letters that count, tight behind a number: 18k is 18 thousand.
_LETTER = re.compile(r"(.{0,30}[0-9])(?:([kK])|(M|mn)|(?:B|bn))\b(.{0,100})")
# The last number of a text: not within a word or a number, nor a term of a sum or a product.
_LAST = re.compile(
    r"(?<![\w.,])(?:([-−+]) ?)?(?:[$€£¥₹] ?)?(-?(?:[0-9]{1,3}(?:,[0-9]{3}){1,12}"
    r"|[0-9]{1,40})?(?:\.[0-9]{1,40})?(?<=[0-9])(?:[ ]?/[ ]?[0-9]{1,40})?)"
    r"(?![0-9]|[.,:][0-9]|[ ]{0,2}[-+*/^=×÷][ ]{0,2}[$€£¥₹]?[0-9(])"
)


def judge(text: str, gold, settings) -> Verdict:
    values = check_gold(gold, settings)
    found = extract_number(text, settings)
    return Verdict(found is not None and found in values, "" if found is None else _written(found))


def check_gold(gold, settings) -> list[Fraction]:
    """The accepted numbers; raises UnparsableGold."""
    return [read_gold(text) for text in golds.texts(gold)]


@lru_cache(maxsize=65536)
def read_gold(gold: str) -> Fraction:
    """The gold number: of `18`, or of a whole solution that ends in `#### 18`."""
    text = gold.rpartition(_MARK)[2]
    value = stated(text) if any(map(str.isnumeric, text)) else None
    if value is None:
        raise UnparsableGold(gold)
    return value


def extract_number(text: str, settings) -> Fraction | None:
    mark, line = _marked(text)
    if mark >= 0 and extract.last_box_start(text[mark:]) < 0:
        return stated(line, settings)
    boxes = extract.contents(text)
    if boxes is None:
        return last(text) if settings.last_number else None
    return stated(", ".join(boxes), settings)


def _marked(text: str) -> tuple[int, str]:
    """(where the last `####` is that is no heading, its line); -1 if there is none."""
    end = len(text)
    for _ in range(MOST_MARKS):
        mark = text.rfind(_MARK, 0, end)
        if mark < 0:
            break
        rest = text[mark + len(_MARK) : min(end, mark + 2 * LONGEST_LINE)].lstrip(" #\t\n")
        line, _, below = rest.partition("\n")
        if line.isdigit():
            return mark, line
        if _ANSWER_HEADING.match(line):
            line = below.strip().partition("\n")[0]
        if any(c.isnumeric() or c == "\\" for c in line) and not _HEADING.match(line):
            return mark, line
        end = mark
    return -1, ""


def stated(text: str, settings=None) -> Fraction | None:
    """The number that a line or the content of a box states, in any notation; None for none, several, or a sum."""
    text = text.strip()
    if len(text) > LONGEST_LINE:
        return None
    if match := _LETTER.fullmatch(text):
        text = f"{match[1]} {'thousand' if match[2] else 'million' if match[3] else 'billion'} {match[4]}"
    read = answer.read(text)
    if read.kind == "option" and read.parts[1]:
        read = answer.read(read.parts[1])  # (A) 5
    if read.kind == "approximation" and settings:  # 9 + 9 = 18, if it is
        read = relation.holds(read, answer.Comparison(settings)) and read.parts[-1]
    return read.parts[0] if read and read.kind == "number" else None


def last(text: str) -> Fraction | None:
    """The last number of the text's last 2,000 characters; None if there is none."""
    end, stop = len(text), max(0, len(text) - TAIL)
    while end > stop and text[end - 1] not in "0123456789":
        end -= 1
    found = list(_LAST.finditer(text, max(stop, end - LONGEST_NUMBER)))
    if not found or (found[-1][1] and found[-1][2].startswith("-")):
        return None
    value = number(found[-1][2].replace(",", ""))
    return None if value is None else -value[0] if found[-1][1] in ("-", "−") else value[0]


def _written(value: Fraction) -> str:
    """For logs: 18, 0.75 or 1/3."""
    return repr(float(value)) if value.denominator > 1 and Fraction(repr(float(value))) == value else str(value)
