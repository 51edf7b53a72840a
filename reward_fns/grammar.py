"""The outermost mark of an answer's text, which says what kind of answer it is, and its brackets.

    mark("x = 1, x = 2")  ->  "list"        mark("x = 5")  ->  "relation"        mark("(1, 2)")  ->  "brackets"

A text has one outermost mark, as a formula has one outermost operator. Every kind says which mark it has, so no text is
of two kinds.
"""

import re
from functools import lru_cache

from reward_fns import words

# (C), C., (C) 12: a label, and what it stands before.
OPTION = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?(?:[(\[{]\s*([A-Ja-j])\s*[)\]}]\s*[.:,)-]?|([A-J])\s*(?:[.:)](?=\s|$"
    r"|\()|$))\s*(.*)",
    re.DOTALL | re.IGNORECASE,
)
SEPARATOR = re.compile(r"[,;]\s*(?:and|or|and/or)\s+|[,;]|\s+(?:and|or)\s+|\s&\s|(?<=\))\s*(?:and|or)\s*(?=\()")
RELATION = re.compile(r"<=|>=|!=|==?|<|>|\\(?:leq|geq|neq|in|approx|equiv|implies|to|iff)(?![A-Za-z])")
# From the loosest to the tightest.
MARKS = (
    ("list", SEPARATOR),
    ("relation", RELATION),
    ("union", re.compile(r"\\cup(?![A-Za-z])|(?<=[)\]])\s*U\s*(?=[(\[])")),
    ("plus-minus", re.compile(r"\\(?:pm|mp)(?![A-Za-z])")),
    ("colon", re.compile(r":|(?<=[0-9])\s+to\s+(?=[0-9])")),
)
MOST_LAYERS = 20
BRACKETS = re.compile(r"(\\\{|[(\[{<\]])(.*?)(\\\}|[)\]}>\[])", re.DOTALL)


@lru_cache(maxsize=32768)
def mark(text: str) -> str:
    """`option`, `words`, `matrix`, `list`, `relation`, `union`, `plus-minus`, `colon`, `brackets`, else `value`."""
    if is_option(text):
        return "option"
    if words.hedged(text) or (words.is_text(text) and not outside(text, SEPARATOR)):
        return "words"
    if "\\begin" in text:
        return "matrix"
    if in_brackets(text) is not None:
        return "brackets"
    return next((name for name, pattern in MARKS if outside(text, pattern)), "value")


def is_option(text: str) -> bool:
    match = OPTION.fullmatch(text)
    if match is None or (closing(text) == len(text) - 1 and "," in text):
        return False
    letter, rest = match[1] or match[2], match[3]
    return letter.isupper() or (bool(match[1]) and text.startswith("(") and not rest)


def in_brackets(text: str) -> tuple[str, str, str] | None:
    """(opening bracket, what it holds, closing bracket) where one pair stands around it all; ]0, 1[ and <0, 1> too."""
    match = BRACKETS.fullmatch(text)
    if match is None:
        return None
    opening, inner, ends = match.groups()
    if opening in "]<" or ends in "[>":
        opening, ends = "(" if opening in "]<" else opening, ")" if ends in "[>" else ends
        return None if re.search(r"[\[\]<>]", inner) else (opening, inner, ends)
    return (opening, inner, ends) if closing(text) == len(text) - len(ends) else None


def closing(text: str, start: int = 0) -> int:
    """Where the bracket that opens at `start` closes (of `\\}` the backslash); -1 if it does not."""
    depth = 0
    for position in range(start + text.startswith("\\", start), len(text)):
        depth += (text[position] in "([{") - (text[position] in ")]}")
        if depth == 0:
            return position - (text[position] == "}" and text[position - 1] == "\\")
    return -1


def outside(text: str, pattern: re.Pattern, opening: str = "([{") -> list[re.Match]:
    """The matches that are within no bracket; intervals may close what another bracket opened."""
    matches = list(pattern.finditer(text))
    ends = opening.translate(str.maketrans("([{", ")]}"))
    depths, depth = [], 0
    for character in text if matches else "":
        depth -= character in ends
        depths.append(depth)
        depth += character in opening
    return [match for match in matches if depths[match.start()] <= 0]


def split(text: str, pattern: re.Pattern) -> list[str]:
    """The text at the matches outside of brackets, each piece trimmed."""
    pieces, last = [], 0
    for match in outside(text, pattern):
        pieces.append(text[last : match.start()])
        last = match.end()
    return [trimmed(piece) for piece in [*pieces, text[last:]]]


def trimmed(text: str) -> str:
    """Without final punctuation, quotes, and braces or parentheses around one value."""
    before = None
    for _ in range(MOST_LAYERS):
        if text == before:
            break
        before, text = text, text.strip(" ").removesuffix("\\\\").rstrip(" ,;:")
        if text.endswith(".") and not text.endswith("..."):
            text = text[:-1]
        if len(text) > 2 and text[0] == text[-1] in "\"'":
            text = text[1:-1]
        if text[:1] in ("{", "(", "[") and closing(text) == len(text) - 1 and not is_option(text):
            inner, ends = text[1:-1], text[0] + text[-1]
            if ends in ("{}", "()", "[]") and not outside(inner, re.compile("[,;]")):
                text = inner
    return text
