"""What is said around a value: the value is what stays.

    value("\\text{so the area is } 7 \\text{ (minimum)}")  ->  "7"

Each rule takes away one thing; they are applied until none has anything left to take. A hedge ("not 5", "about 5") is
no value, and nothing is taken from it.
"""

import re

from reward_fns import units, words
from reward_fns.grammar import RELATION, SEPARATOR, closing, mark, outside, trimmed
from reward_fns.kinds import number

LONGEST = 400
NAMED_TIMES = {"noon": "12:00 p.m.", "12 noon": "12:00 p.m.", "midnight": "0:00", "12 midnight": "0:00"}
# `not 10 but 18`
CORRECTED = re.compile(
    r"(?:[a-z' ]{0,40}\b)?not\b[^,;]{1,40}?(?:,? but|,? it['’]s|,? which is)\s+(?=[^A-Za-z]*[0-9\\])"
    r"(?!.*\b(?:not|but|or|maybe)\b)",
    re.I,
)
VERB = (
    r"(?:is|are|equals|equal to|be|was|were|as|costs|has|have|had|(?:earns?|makes?|pays?|needs?|gets?|spends?|saves?"
    r"|sells?|takes?|weighs?|made|paid|got|spent|sold)(?=\s[\W\d]{0,4}[0-9]))\b"
    r"(?:\s(?:equal to|exactly|therefore|thus|then|given by)\b)?(?:\s*:)?"
)
PLACES = (
    r"(?:points?|pairs?|triples?|tuples?|coordinates|vectors?|intervals?|segments?|rays?|ranges?|domain|region"
    r"|vert(?:ex|ices)|cent(?:er|re)|sets?|union|all|range|locus|roots|solutions?|values?)"
)
# What stands before a value.
LEADS = (
    # the answer is, the number of eggs is, Total:, angle 1 is
    re.compile(
        rf"(?=[^:]*[A-Za-z])(?:[A-Za-z'’ ,()_-]|\\(?:angle|triangle)\s*[A-Z0-9]{{1,3}}){{0,120}}?(?:\s{VERB}"
        rf"|(?<=[A-Za-z]{{2}})\s*:)\s*(?=\S)",
        re.I,
    ),
    # the open set (0, 1)
    re.compile(rf"(?:(?:the|a|an|all|of|[a-z]+(?:-[a-z]+)?) ){{0,4}}{PLACES} (?:of |[A-Z] ?)?(?=[(\[]|\\\{{)", re.I),
    re.compile(r"(?:exactly|only|just|precisely|simply)\s+(?=\S)", re.I),
)
MINUS = re.compile(r"(?:negative|minus)\s+(?=[0-9.\\$])", re.I)
# What stands behind one: a reason, a condition, a manner.
TAIL = re.compile(
    r"[,;.]?\s+(?:because|since|which|as|where|when|whenever|given that|provided|assuming|so that|such that|so|after"
    r"|if|hence|thus|i\.e|in (?:all|total|the end|this case)|altogether|overall"
    r"|for(?=\s(?:all|any|every|each|some|integers?|real|positive|\\?[a-z]\b))|from(?=\s[a-z])|at(?=\s\\?[a-z]\s*=)"
    r"|with(?=\s\\?[a-z]\s*(?:[=<>]|\\[a-z]+eq|\\in))|(?:is|attained|achieved|reached) (?:at|when)|on(?=\s[(\[]))"
    r"(?:\s.*|$)",
    re.I | re.S,
)
# A remark begins with a word or a number of things, or is a relation: 7 (minimum), n^2 (n >= 1), 72 loaves (3 crates).
REMARK = re.compile(
    r"(?P<value>.*[^\s(^_\\,;])\s*\((?P<remark>\s*(?:(?P<word>[A-Za-z]{2,})\b|[0-9.]+ [A-Za-z]{2,}|\\approx|=).*)\)"
)
BEGIN_A_REMARK = {"at", "in", "by", "as", "if", "on", "is", "max", "min", "all", "for", "the", "its", "since", "see"}
CONDITION = re.compile(
    r"\\?[A-Za-z]\w?\s*(?:<|>|\\(?:leq|geq|neq|in)(?![A-Za-z])).*|.*(?:<|>|\\leq|\\geq)\s*\\?[A-Za-z]"
)


def value(text: str) -> str:
    """The text of the value that is stated; the text itself where nothing is said around it."""
    before = None
    while text != before and len(text) <= LONGEST:
        before, text = text, trimmed(text)
        if words.hedged(text):
            text = CORRECTED.sub("", text, count=1) if CORRECTED.match(text) else text
            continue
        text = without_remark(words.without_phrases(text))
        for lead in LEADS:
            text = text[match.end() :] if (match := lead.match(text)) else text
        text = MINUS.sub("-", text, count=1) if MINUS.match(text) else text
        if (tail := next(iter(outside(text, TAIL)), None)) and tail.start() and not text[: tail.start()].endswith("="):
            text = text[: tail.start()]
    return NAMED_TIMES.get(trimmed(text).lower(), trimmed(text))


def without_remark(text: str) -> str:
    """Without a remark in parentheses, or a condition behind a comma: `n^2, n > 0`."""
    match = REMARK.fullmatch(text)
    if match and closing(text, text.index("(", match.end("value"))) == len(text) - 1:
        value, remark, word = match["value"], match["remark"].strip(), match["word"]
        if remark.startswith(("\\approx", "=")):
            return f"{value} {remark}"
        if word is None or words.is_word(word) or word.lower() in BEGIN_A_REMARK:
            return f"{value} {remark}" if units.read(remark) and not RELATION.search(remark) else value
    condition = re.fullmatch(r"(.*[^\s(^_\\,;])\s*\(([^()]*)\)", text)
    if condition and (
        CONDITION.fullmatch(condition[2]) or re.match(r"\\?[A-Za-z]\s*=", condition[2]) or equal(*condition.groups())
    ):
        return condition[1]
    parts = outside(text, SEPARATOR)
    if len(parts) == 1 and parts[0][0].strip() == ",":
        first, last = text[: parts[0].start()], text[parts[0].end() :].strip()
        stated = not CONDITION.fullmatch(first) and mark(trimmed(first)) in ("value", "relation")
        if stated and CONDITION.fullmatch(last):
            return first
    return text


def equal(*written: str) -> bool:
    """Whether two numbers are one, as in `1/2 (50%)`."""
    values = [number.number(text.strip().removesuffix("%").strip()) for text in written]
    if None in values:
        return False
    a, b = (value[0] / (100 if text.strip().endswith("%") else 1) for value, text in zip(values, written, strict=True))
    return a == b
