"""Lists (1, 2), sets {1, 2}, unions of intervals, and ±: the same items in any order. Listing more than is asked is
wrong."""

import re
from dataclasses import replace

from reward_fns.grammar import MARKS, SEPARATOR, in_brackets, mark, split
from reward_fns.kinds import UNKNOWN, Answer

KINDS = ("list", "set", "union")
MOST_ITEMS = 64
# {x | x > 2}
DESCRIBED = re.compile(r"\\?[A-Za-z]\s*(?:\\in\s*[^|:<>]{1,20})?[|:]\s*(.+)")
COMMA_DECIMAL = re.compile(r"[-+]?[0-9]+,[0-9]+(?:\s*(?:%|[A-Za-z$€£¥][^,;0-9]*))?")
THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+")


def read(text: str, inner) -> Answer | None:
    """parts: the items."""
    match mark(text):
        case "list":
            return read_list(text, inner)
        case "union":
            parts = split(text, dict(MARKS)["union"])
            return Answer("union", tuple(map(inner, parts))) if all(parts) else UNKNOWN
        case "plus-minus":
            signs = (text.replace("\\pm", a).replace("\\mp", b) for a, b in ("+-", "-+"))
            return Answer("list", tuple(map(inner, signs)))
        case "value" if text == "\\emptyset":
            return Answer("set")
        case "brackets":
            opening, held, ends = in_brackets(text)
            if opening == "{":  # TeX's own braces say nothing
                return read_list(held, inner)
            if opening == "\\{":
                return read_set(held, inner) if ends == "\\}" else UNKNOWN
    return None


def read_list(text: str, inner) -> Answer:
    if (points := points_by_name(text, inner)) is not None:
        return points
    parts = [part for part in split(text, SEPARATOR) if part]
    if len(parts) > MOST_ITEMS or not parts:
        return UNKNOWN
    if len(parts) == 1:
        return inner(parts[0])
    items = tuple(map(inner, parts))
    if len(items) == 2 and " and " in text and all(i.kind == "tuple" and i.name for i in items):  # x > 2 and x < 5
        low, high = items if items[0].parts[2].text == "\\infty" else items[::-1]
        if low.name == high.name and (low.parts[2].text, high.parts[1].text) == ("\\infty", "-\\infty"):
            return replace(low, parts=((low.parts[0][0], high.parts[0][1]), low.parts[1], high.parts[2]), text=text)
    return Answer("list", flat(items))


def points_by_name(text: str, inner) -> Answer | None:
    """`x=1, y=2 or x=2, y=1` is a list of points."""
    groups = [split(g, re.compile(r"\s*,\s*|\s+and\s+")) for g in split(text, re.compile(r"\s*;\s*|\s+or\s+"))]
    if not groups[1:] or min(map(len, groups)) < 2:
        return None
    points = [sorted(map(inner, group), key=lambda part: part.name) for group in groups]
    names = [[part.name for part in point] for point in points]
    if not all(names[0]) or len(set(names[0])) != len(names[0]) or any(n != names[0] for n in names):
        return None
    return Answer("list", tuple(Answer("tuple", (("(", ")"), *point)) for point in points))


def read_set(held: str, inner) -> Answer:
    if described := DESCRIBED.fullmatch(held.strip()):
        answer = inner(described[1])
        return replace(answer, kind="union") if answer.kind == "list" else answer
    parts = split(held, re.compile("[,;]"))
    return Answer("set", flat(map(inner, parts)) if any(parts) else ())


def flat(items) -> tuple[Answer, ...]:
    """1 ± 2 within a list is two of its items."""
    return tuple(part for item in items for part in (item.parts if item.kind == "list" else (item,)))


def view(answer: Answer, compare) -> Answer | None:
    """A list as a set or a union, a set of values as a list, 1,800 as two items."""
    if answer.kind == "number" and THOUSANDS.fullmatch(answer.text):
        return Answer("list", tuple(map(compare.read, answer.text.split(","))), answer.text)
    return answer if answer.kind in KINDS else None


def as_value(answer: Answer, compare) -> Answer | None:
    """The one value of a list or a set: 2,5 is 2.5, 2 and 1/3 is 2 1/3, {5} is 5."""
    if answer.kind == "list" and COMMA_DECIMAL.fullmatch(answer.text):
        return compare.read(answer.text.replace(",", ".", 1))
    if answer.kind == "list" and re.fullmatch(r"[0-9]+ and (?:[0-9]+/[0-9]+|\\frac.+)", answer.text):
        return compare.read(answer.text.replace(" and ", " "))
    return answer.parts[0] if answer.kind == "set" and len(answer.parts) == 1 else None


def same(gold: Answer, answer: Answer, compare) -> bool:
    if len({gold.kind, answer.kind} - {"list"}) == 2:
        return False  # a set is no union
    left: list[Answer] = []
    for part in answer.parts:  # a point that is named twice is one
        if part.kind != "tuple" or not any(compare(part, other) for other in left):
            left.append(part)
    if len(gold.parts) != len(left):
        return False
    for item in gold.parts:
        place = next((i for i, other in enumerate(left) if compare(item, other)), None)
        if place is None:
            return False
        del left[place]
    return True
