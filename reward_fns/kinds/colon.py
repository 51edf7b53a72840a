"""What is written with a colon: times (12:00, 4:30 p.m., 3 o'clock) and ratios (3:2, 3 to 2)."""

import re

from reward_fns.grammar import MARKS, mark, split
from reward_fns.kinds import Answer
from reward_fns.kinds.number import number

KINDS = ("time", "ratio")
TIME = re.compile(
    r"([0-9]{1,2})(?::([0-5][0-9]))?(?::([0-5][0-9]))?\s*"
    r"(?:(a\s?\.?\s?m\b\.?|in the morning)|(p\s?\.?\s?m\b\.?|in the (?:afternoon|evening)|at night)"
    r"|(o'? ?clock|noon|midnight))?",
    re.I,
)


def read(text: str, inner) -> Answer | None:
    """parts of a time: (hour, minute, second), whether the half of the day is known; of a ratio: its numbers."""
    kind = mark(text)
    match = TIME.fullmatch(text) if kind in ("colon", "value") else None
    if match and any(match.groups()[1:]) and int(match[1]) <= 24:
        hour, known = int(match[1]), bool(match[4] or match[5])
        if known:
            hour = hour % 12 + 12 * bool(match[5])
        return Answer("time", ((hour, int(match[2] or 0), int(match[3] or 0)), known or not 0 < hour <= 12))
    return ratio(text) if kind == "colon" else None


def ratio(text: str) -> Answer | None:
    values = [number(part) for part in split(text, dict(MARKS)["colon"])]
    return Answer("ratio", tuple(value for value, _ in values), text) if 2 <= len(values) <= 6 and all(values) else None


def view(answer: Answer, compare) -> Answer | None:
    return ratio(answer.text) if answer.kind == "time" else None


def same(gold: Answer, answer: Answer, compare) -> bool:
    a, b = gold.parts, answer.parts
    if gold.kind == "ratio":
        return len(a) == len(b) and all(a[0] * y == b[0] * x for x, y in zip(a, b, strict=True))
    return a[0] == b[0] if a[1] and b[1] else (a[0][0] % 12, a[0][1:]) == (b[0][0] % 12, b[0][1:])
