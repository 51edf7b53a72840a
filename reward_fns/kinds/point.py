"""Points, vectors and intervals: brackets and items in order. An inequality in one variable is an interval."""

import re

from reward_fns.grammar import in_brackets, mark, split
from reward_fns.kinds import UNKNOWN, Answer

KINDS = ("tuple",)


def read(text: str, inner) -> Answer | None:
    """parts: the brackets, then the items."""
    if mark(text) != "brackets":
        return None
    opening, held, ends = in_brackets(text)
    items = split(held, re.compile("[,;]"))
    if opening in ("\\{", "{") or (len(items) == 1 and opening + ends in ("()", "[]")):
        return None
    return Answer("tuple", ((opening, ends), *map(inner, items))) if items[1:] and all(items) else UNKNOWN


def view(answer: Answer, compare) -> Answer | None:
    """A bare list as a point."""
    return Answer("tuple", (("(", ")"), *answer.parts), answer.text) if answer.kind == "list" else None


def same(gold: Answer, answer: Answer, compare) -> bool:
    alike = gold.parts[0] == answer.parts[0] and len(gold.parts) == len(answer.parts)
    return alike and all(map(compare, gold.parts[1:], answer.parts[1:]))
