"""Numbers in a base: 204_5, 101 in binary, {204}_{five}. Equal if base and value are."""

import re

from reward_fns.grammar import mark
from reward_fns.kinds import Answer
from reward_fns.words import BASES

KINDS = ("base",)
BASE = re.compile(
    r"([-+]?)\s*[({]?\s*([0-9A-Fa-f ]*[0-9][0-9A-Fa-f ]*)\s*[)}]?\s*(?:_\s*\{?\s*\(?\s*(?:base\s*)?"
    r"|[,(]?\s*(?:in\s+)?base[\s-]*|in\s+(?=binary|ternary|octal|hex))"
    r"([0-9]{1,2}|[A-Za-z]{3,11})\s*[)}]*"
)


def read(text: str, inner) -> Answer | None:
    """parts: the base, the value."""
    match = BASE.fullmatch(text) if mark(text) == "value" else None
    if match is None or text.count("(") != text.count(")"):
        return None
    radix = int(match[3]) if match[3].isdigit() else BASES.get(match[3].lower(), 0)
    try:
        return Answer("base", (radix, int(match[1] + match[2].replace(" ", ""), radix))) if radix > 1 else None
    except ValueError:
        return None


def same(gold: Answer, answer: Answer, compare) -> bool:
    return gold.parts == answer.parts
