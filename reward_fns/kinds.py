"""What kind of answer a text states, and whether two answers of one kind are equal.

    same(read("x = \\dfrac12"), read("0.5"), Settings())  ->  True

Kinds that differ are not equal: a point is no set, a time no ratio, a number in base 5 none in base 6, a word no
product of letters. Within a kind plain values are compared exactly (formula.py); None means that the guarded verifier
has to look.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from reward_fns import formula, notation, units, words
from reward_fns.formula import Beyond, Malformed, Node


@dataclass(frozen=True)
class Answer:
    """An answer that was read.

    kind: `formula`, `list`, `tuple` (with its brackets: a point, a vector or an interval), `set`, `union`, `matrix`,
        `equation`, `relation`, `base`, `time`, `ratio`, `option`, `text`; `beyond` for mathematics and `unknown` for
        anything else that is not read here.
    parts: what it is made of, by kind: formulas, answers or plain values.
    text: its plain form.
    name: the left side of `x = 5`.
    unit: what `5 cm` is measured in, `%` included.
    other: its reading with a unit of one letter (`5 m`), where its first reading is a formula.
    """

    kind: str
    parts: tuple = ()
    text: str = ""
    name: str = ""
    unit: str = ""
    other: Answer | None = None


LONGEST = 4096
LONGEST_PROSE = 400
MOST_ITEMS = 64
_OPEN, _CLOSE = "([{", ")]}"
_COMMA_NUMBER = re.compile(
    r"(?<![0-9.,_^A-Za-z])(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}"
    r"|[1-9][0-9]{0,2}(?: [0-9]{3})+"
    r"|[0-9]{1,3}(?:'[0-9]{3})+|[0-9]{1,3}(?:_[0-9]{3})+)(?![0-9]|,[0-9]|'[0-9]| [0-9])"
)
_EUROPEAN = re.compile(r"([-+]?[0-9]{1,3}(?:\.[0-9]{3})+),([0-9]+)|([-+]?[0-9]{1,3}(?:\.[0-9]{3}){2,})")
_COMMA_DECIMAL = re.compile(r"[-+]?0,[0-9]+")
_COMMAS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+")
_MAYBE_DECIMAL = re.compile(r"[-+]?[0-9]+,[0-9]+(?:\s*(?:%|[A-Za-z$€£¥][^,;0-9]*))?")
_MIXED = re.compile(r"[0-9]+ and (?:[0-9]+/[0-9]+|\\frac\s*(?:\{[0-9]+\}|[0-9])\s*(?:\{[0-9]+\}|[0-9]))")
_TIMES_TEN = re.compile(r"(?<=[0-9])\s*[xX]\s*(?=10\s*\^)")
_POWER_OF_TEN = re.compile(r"(?<=[0-9])\s*\*?\s*[eE]\s*\^?\s*([-+]?[0-9]{1,3})(?![0-9A-Za-z.])")
_REPEATING = re.compile(
    r"([0-9]{0,20})\.([0-9]{0,20})(?:\\(?:overline|bar|dot)\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))|\(([0-9]+)\))(?![0-9])"
)
_DOTS = re.compile(r"([0-9]{0,20})\.([0-9]{0,20}?)([0-9]{1,6}?)\3+\s*\.\.\.")
_BASE_DIGITS = r"([-+]?)\s*\(?\s*([0-9A-Fa-f][0-9A-Fa-f ]*)\s*\)?"
_BASE = re.compile(
    _BASE_DIGITS
    + r"\s*(?:_\s*\{?\s*\(?\s*(?:base\s*)?|[,(]?\s*(?:in\s+)?base[\s-]*)([0-9]{1,2}|[A-Za-z]{3,11})\s*[)}]*"
    r"|" + _BASE_DIGITS + r"\s+in\s+(binary|ternary|octal|hexadecimal)"
)
_TIME = re.compile(
    r"([0-9]{1,2})(?:\s*:\s*([0-5][0-9])(?::([0-5][0-9]))?)?\s*(?:([ap])\s?\.?\s?m\b\.?|(o'? ?clock)|(noon|midnight))?",
    re.IGNORECASE,
)
_MORNING = re.compile(r"\s+(?:in the (?:morning|afternoon|evening)|at night)$", re.IGNORECASE)
_OPTION = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?(?:[(\[{]\s*([A-Ja-j])\s*[)\]}]\s*[.:,)-]?|([A-J])\s*(?:[.:)](?=\s|$|\()|$))\s*(.*)",
    re.DOTALL | re.IGNORECASE,
)
_SYMBOL = r"(?:\\(?:dot|vec|hat|bar|overline)\s*)?\{?\\?[A-Za-z]+\}?'*\s*(?:_\s*(?:\{[^{}]*\}|\\?\w+))?'*"
_NAME = re.compile(
    rf"{_SYMBOL}(?:\s*\^\s*(?:\{{\s*-?1\s*\}}|-1))?(?:\s*\(\s*[\w\\,\s+-]{{1,30}}\))?"
    rf"|\|\s*(?:[A-Z]{{2}}|{_SYMBOL})\s*\||(?:m\s*)?\\(?:angle|triangle)[^=]{{1,20}}"
    rf"|\(\s*{_SYMBOL}(?:\s*[,;]\s*{_SYMBOL})+\)|{_SYMBOL}\s*:\s*{_SYMBOL}|\\frac\s*\{{\s*[A-Z]{{2}}\s*\}}\s*\{{\s*[A-Z]{{2}}\s*\}}"
    rf"|{_SYMBOL}\s*/\s*{_SYMBOL}|[A-Za-z][a-z]+(?: (?:[A-Za-z]+|[0-9])){{0,6}}"
    rf"|\\?(?:sin|cos|tan|cot)\s*(?:\\angle\s*)?[A-Z]{{1,3}}"
)
_IS = re.compile(
    r"\s(?:is|are|equals|equal to|be|was|were|as|costs|has|have|had"
    r"|(?:earns?|makes?|pays?|needs?|gets?|spends?|saves?|sells?|takes?|weighs?|made|paid|got|spent|sold)(?=\s[\W\d]{0,4}[0-9]))\b"
    r"(?:\s(?:equal to|exactly|therefore|thus|then|given by)\b)?"
    r"(?:\s*:)?\s*(?=\S)|(?<=[A-Za-z]{2})\s*:\s*(?=\S)",
    re.IGNORECASE,
)
_ANGLE = re.compile(r"\\(?:angle|triangle)\s*[A-Z0-9]{1,3}")
_SUBJECT = re.compile(r"[A-Za-z'’ ,()_-]{1,120}")
_REASON = re.compile(
    r"[,;.]?\s+(?:because|since|which|as|where|when|given that|so that|after|from|if)\s", re.IGNORECASE
)
_MINUS = re.compile(r"(?:negative|minus)\s+(?=[0-9.\\$])", re.IGNORECASE)
_POINT = re.compile(
    r"(?:the )?(?:ordered )?(?:point|pair|coordinates|vector|interval|vertex|cent(?:er|re)|set)s? "
    r"(?:[A-Z] ?)?(?=[(\[]|\\\{)",
    re.I,
)
_INCHES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:''|\")")
_RELATION = re.compile(r"<=|>=|!=|==|=|<|>|\\(?:leq|geq|neq|in|approx|equiv|implies|to|iff)(?![A-Za-z])")
_RELATION_NAMES = {"<=": "\\leq", ">=": "\\geq", "!=": "\\neq", "==": "="}
_FLIPPED = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq", "=": "=", "\\neq": "\\neq"}
_SEPARATOR = re.compile(
    r"[,;]\s*(?:and|or|and/or)\s+|[,;]|\s+(?:and|or)\s+|\s&\s|(?<=\))\s*(?:and|or)\s*(?=\()|\s+\\(?:cup)\s"
)
_UNIT_START = re.compile(r"(?<=[0-9)}\]°!%A-Za-z])\s(?=[A-Za-z°$€£¥₹¢₩₽\\])|(?<=[0-9)}\]])(?=[A-Za-z°$€£¥₹¢₩₽])")
_UNIT_PIECE = re.compile(
    r"\s*(?:[A-Za-z][A-Za-z'-]*\.?|°\s*[CF]?(?![A-Za-z])|\\(?:mu|Omega)\s?|[$€£¥₹¢₩₽]|[/*]\s*(?=[A-Za-z]))(?:\s*\^\s*\{?\s*-?[0-9]\s*\}?)?"
)
_COUNTED = re.compile(r"(.*[0-9}])\s*\(\s*([A-Za-z][A-Za-z ]{1,60})\)")
_MATRIX = re.compile(
    r"\\begin\s*\{([pbBvV]?matrix|array|smallmatrix)\}(?:\s*\{[lcr|]*\})?(.*?)\\end\s*\{\1\}", re.DOTALL
)
_FULLWIDTH = re.compile("[０-９\u202a-\u202e\u2066-\u2069\0\ufffd]|[^\x00-\U0000d7ff\ue000-\U0010ffff]")


_CALCULUS = re.compile(
    r"\\(?:sum|prod|lim|i?int|oint|mathbb|p?mod|bmod|equiv|setminus|cap|max|min|gcd|lcm)(?![A-Za-z])"
)


# ---- reading ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32768)
def read(text: str) -> Answer:
    """The answer in `text`, in any notation."""
    if len(text) > LONGEST or _FULLWIDTH.search(text):
        return Answer("unknown", text=text[:LONGEST])
    if text.rstrip().endswith((">", ">user")):
        text = _END_OF_TEXT.sub("", text)
    plain = trimmed(words.without_phrases(notation.plain(formula_in_words(text))))
    if len(plain) > LONGEST:
        return Answer("unknown", text=plain[:LONGEST])
    if _is_words(text) and words.is_text(plain) and not words.hedged(plain):
        return _option(plain) or _text(plain) or _of(plain)
    try:
        return _of(plain)
    except RecursionError:
        return Answer("unknown", text=plain)


_END_OF_TEXT = re.compile(r"\s*(?:<\|\w{1,20}\|>(?:user)?|</s>)\s*$")
_SPAN = re.compile(r"\$\$([^$]+)\$\$|(?<!\\)\$([^$]+)\$|\\\((.{1,400}?)\\\)|\\\[(.{1,400}?)\\\]", re.DOTALL)


def formula_in_words(text: str) -> str:
    """The one formula of a sentence: `Here it is: $5$`."""
    if "$" not in text and "\\(" not in text and "\\[" not in text:
        return text
    spans = list(_SPAN.finditer(text))
    if len(spans) != 1:
        return text
    before, after = text[: spans[0].start()], text[spans[0].end() :].strip(" .")
    if after or not re.fullmatch(r"[A-Za-z ,:']*[A-Za-z]{2}[A-Za-z ,:']*", before) or words.hedged(before):
        return text
    return next(filter(None, spans[0].groups()))


_WHOLE_WORDS = re.compile(r"\s*\$?\s*\\(?:text|textbf|textit|textrm|mbox|mathrm|textnormal)\s*\{([^{}]*)\}\s*[.$]?\s*")


def _is_words(text: str) -> bool:
    """Whether it is one \\text{...}: letters in it are words however few they are."""
    match = _WHOLE_WORDS.fullmatch(text)
    return match is not None and re.fullmatch(r"\s*[A-Za-z]{2,}[A-Za-z .'-]*", match[1]) is not None


def trimmed(text: str) -> str:
    """Without final punctuation and braces around it all."""
    while True:
        before = text
        text = text.strip(" ").removesuffix("\\\\").rstrip(" ,;:")
        if text.endswith(".") and not text.endswith("..."):
            text = text[:-1]
        if text.startswith("{") and _closing(text, 0) == len(text) - 1 and "," not in text:
            text = text[1:-1]
        if len(text) > 2 and text[0] == text[-1] in "\"'":
            text = text[1:-1]
        if text == before:
            return text


def _of(text: str) -> Answer:
    """The answer in a plain text."""
    if not text:
        return Answer("unknown")
    number = _plain_number(text)
    if number is not None:
        return Answer("formula", (number,), text)
    for reader in _READERS:
        if (answer := reader(text)) is not None:
            return answer if answer.text else replace(answer, text=text)
    return Answer("unknown", text=text)


_PLAIN_NUMBER = re.compile(r"(-?)([0-9]{1,40}(?:\.[0-9]{1,40})?)")


def _plain_number(text: str):
    match = _PLAIN_NUMBER.fullmatch(text)
    if match is None:
        return None
    number = formula.number(match[2])
    return Node("-", (number,)) if match[1] else number


def _option(text: str) -> Answer | None:
    match = _OPTION.fullmatch(text)
    if match is None or ("(" in text and _tuple_like(text)):
        return None
    letter, rest = match[1] or match[2], trimmed(match[3])
    if rest and _OPTION.fullmatch(rest):
        return Answer("unknown")  # (A)(B)
    if letter.islower() and not ((match[1] and text.startswith("(")) or not rest):
        return None
    if letter.islower() and not match[1]:
        return None
    if letter in "abcdefghij" and rest:
        return None  # (a)(b+1)
    return Answer("option", (letter, rest), text)


def _tuple_like(text: str) -> bool:
    return _closing(text, 0) == len(text) - 1 and "," in text


def _time(text: str) -> Answer | None:
    low = text.lower()
    if low in ("noon", "12 noon", "midnight", "12 midnight"):
        return Answer("time", (12 if "noon" in low else 0, 0, 0, True), text)
    late = _MORNING.search(text)
    match = _TIME.fullmatch(text[: late.start()] if late else text)
    if match is None:
        return None
    hour, minute, second, half, clock, _ = match.groups()
    if minute is None and half is None and clock is None:
        return None
    if int(hour) > 24:
        return None
    half = half.lower() if half else ("a" if late and "morning" in late[0] else "p" if late else "")
    hours = int(hour)
    if half and hours > 12:
        return None
    known = bool(half) or hours > 12 or hours == 0
    hours = hours % 12 + 12 * (half == "p") if half else hours
    return Answer("time", (hours, int(minute or 0), int(second or 0), known), text)


def _base(text: str) -> Answer | None:
    match = _BASE.fullmatch(text)
    if match is None or text.count("(") != text.count(")"):
        return None
    sign, digits, base = (group for group in match.groups() if group is not None)
    base = int(base) if base.isdigit() else words.BASES.get(base.lower(), 0)
    digits = digits.replace(" ", "")
    if not 2 <= base <= 36 or not any(c.isdigit() for c in digits):
        return None
    try:
        return Answer("base", (base, int(sign + digits, base)))
    except ValueError:
        return None


def _matrix(text: str) -> Answer | None:
    match = _MATRIX.fullmatch(text[1:-1].strip() if text[:1] in _OPEN and text[-1:] in _CLOSE else text)
    name, equals, named = text.partition("=")
    if match is None and equals and _NAME.fullmatch(name.strip()):
        return _matrix(named.strip())
    if text.count("\\begin") != text.count("\\end"):
        return Answer("unknown")
    if match is None or "\\begin" in match[2]:
        return Answer("beyond") if "\\begin" in text else None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[2]) if row.strip()]
    parts = tuple(tuple(_of(trimmed(cell)) for cell in re.split(r"&| and ", row)) for row in rows)
    return Answer("matrix", parts) if len(parts) <= MOST_ITEMS else Answer("beyond")


def _prose(text: str) -> Answer | None:
    """`The answer is 5`, `Total: 5`, `about 5`, `5 because ...`."""
    if len(text) > LONGEST_PROSE:
        return None
    if about := words.ABOUT.match(text):
        return _of(trimmed(text[about.end() :]))
    if minus := _MINUS.match(text):
        return _of("-" + text[minus.end() :])
    if (named := _POINT.match(text)) and _closing(text, named.end()) == len(text) - 1:
        return _of(text[named.end() :])
    if (inches := _INCHES.fullmatch(text)) is not None:
        return replace(_of(inches[1]), unit="inches")
    lead = _IS.search(text, 0, 160)
    if (
        lead
        and _SUBJECT.fullmatch(subject := _ANGLE.sub("it", text[: lead.start()]))
        and any(map(str.isalpha, subject))
    ):
        rest = trimmed(text[lead.end() :])
        return _of(rest) if rest and not words.hedged(text) else Answer("unknown")
    reason = _REASON.search(text)
    if reason and reason.start():
        return _of(trimmed(text[: reason.start()])) if not words.hedged(text) else Answer("text")
    return None


# `not 10 but 18`
_NOT_BUT = re.compile(
    r"(?:[a-z' ]{0,40}\b)?not\b[^,;]{1,40}?(?:,? but|,? it['’]s|,? which is)\s+"
    r"(?=[^A-Za-z]*[0-9\\])(?!.*\b(?:not|but|or|maybe)\b)",
    re.IGNORECASE,
)
_NO_SOLUTION = re.compile(r"(?:there (?:is|are) )?no (?:real )?solutions?(?: exists?)?|\\\{\s*\\\}", re.IGNORECASE)


def _text(text: str) -> Answer | None:
    if words.hedged(text):
        corrected = _NOT_BUT.match(text)
        return _of(trimmed(text[corrected.end() :])) if corrected else Answer("text")
    if _NO_SOLUTION.fullmatch(text):
        return _formula("\\emptyset")
    if (digits := words.with_digits(text)) != text and (counted := _of(digits)).kind == "formula":
        return replace(counted, text=text)
    if words.is_text(text) and not _split(text, _SEPARATOR)[1:]:
        return Answer("text", text=words.without_announcement(text))
    return None


def _union(text: str) -> Answer | None:
    parts = _split(text, re.compile(r"\s*\\cup(?![A-Za-z])\s*|(?<=[)\]])\s*U\s*(?=[(\[])"))
    return Answer("union", tuple(_of(trimmed(part)) for part in parts)) if parts[1:] and all(parts) else None


def _french(text: str) -> Answer | None:
    """]0, 1[ is (0, 1), and so is <0, 1>."""
    if text.startswith("<") and text.endswith(">"):
        return _of(f"({text[1:-1]})")
    if len(text) < 3 or text[0] not in "][(" or text[-1] not in "[])" or not (text[0] == "]" or text[-1] == "["):
        return None
    if "[" in text[1:-1] or "]" in text[1:-1]:
        return None
    return _of({"]": "("}.get(text[0], text[0]) + text[1:-1] + {"[": ")"}.get(text[-1], text[-1]))


def _joined_numbers(text: str) -> str:
    """Numbers as one run of digits: 1,800, 1 800, 1'800, 1,00,000, 1.800,5, 0,5, 1.5 x 10^3, 0.\\overline{3}."""
    if european := _EUROPEAN.fullmatch(text):
        return european[3].replace(".", "") if european[3] else european[1].replace(".", "") + "." + european[2]
    if _COMMA_DECIMAL.fullmatch(text):
        return text.replace(",", ".")
    if any(c in text for c in ", '_"):
        outside = _outside_brackets(text, _OPEN if "\\{" in text else "([")  # \\frac{1}{20,000} is none
        text = _COMMA_NUMBER.sub(
            lambda m: re.sub(r"[, '_]", "", m[0]) if outside(m.start()) or "," not in m[0] else m[0], text
        )
    text = _TIMES_TEN.sub("*", text)
    text = _POWER_OF_TEN.sub(lambda m: f"e{m[1]}", text)
    text = _DOTS.sub(lambda m: _fraction(m[1], m[2], m[3]), text)
    return _REPEATING.sub(lambda m: _fraction(m[1], m[2], m[3] or m[4] or m[5]), text)


def _fraction(whole: str, decimals: str, repeated: str) -> str:
    nines = 10 ** len(repeated) - 1
    above = int(whole + decimals + repeated or 0) - int(whole + decimals or 0)
    return f"\\frac{{{above}}}{{{nines * 10 ** len(decimals)}}}"


def _both(a: Answer, b: Answer) -> Answer | None:
    """The interval of `x > 2 and x < 5`."""
    if a.kind != b.kind or a.kind != "tuple" or not a.name or a.name != b.name:
        return None
    low, high = (a, b) if a.parts[2].text == "\\infty" else (b, a)
    if (low.parts[2].text, high.parts[1].text) != ("\\infty", "-\\infty"):
        return None
    return Answer("tuple", ((low.parts[0][0], high.parts[0][1]), low.parts[1], high.parts[2]), name=a.name)


def _points(text: str) -> Answer | None:
    """`x=1, y=2 or x=2, y=1` is a list of points."""
    groups = _split(text, _BETWEEN_POINTS)
    if not groups[1:] or text.count("=") < 2 * len(groups):
        return None
    points = [[_of(trimmed(part)) for part in _split(group, _COMMA)] for group in groups]
    names = [[part.name for part in point] for point in points]
    if not all(map(all, names)) or any(len(set(n)) != len(n) or set(n) != set(names[0]) for n in names):
        return None
    ordered = [sorted(point, key=lambda part: part.name) for point in points]
    return Answer("list", tuple(Answer("tuple", (("(", ")"), *point)) for point in ordered))


_BETWEEN_POINTS = re.compile(r"\s*;\s*|\s+or\s+")
_COMMA = re.compile(r"\s*,\s*|\s+and\s+")


def _list(text: str) -> Answer | None:
    if (points := _points(text)) is not None:
        return points
    parts = _split(text, _SEPARATOR)
    if not parts[1:]:
        return None
    parts = [trimmed(part) for part in parts]
    parts = [part for part in parts if part]
    if len(parts) > MOST_ITEMS:
        rest = Answer("text", text=", ".join(parts[MOST_ITEMS:]))
        return Answer("list", (*(_of(part) for part in parts[:MOST_ITEMS]), rest))
    if len(parts) == 2 and " and " in text and (both := _both(*map(_of, parts))):
        return both
    return Answer("list", tuple(_of(part) for part in parts)) if parts[1:] else _of(parts[0]) if parts else None


def _bracketed(text: str) -> Answer | None:
    """(…), […), {…}, ⟨…⟩ around it all, with what it lists."""
    opening = next((b for b in ("\\{", "(", "[", "{") if text.startswith(b)), None)
    closing = next((b for b in ("\\}", ")", "]", "}") if text.endswith(b)), None)
    if opening is None or closing is None or len(text) <= len(opening) + len(closing):
        return None
    if _closing(text, 0) != len(text) - len(closing):
        return None
    inner = trimmed(text[len(opening) : -len(closing)])
    parts = [trimmed(part) for part in _split(inner, re.compile(r"\s*[,;]\s*"))]
    braces = opening in ("\\{", "{")
    if (braces and closing not in ("\\}", "}")) or not all(parts):
        return None
    if len(parts) == 1 and not braces:
        return _of(inner) if (opening, closing) in (("(", ")"), ("[", "]")) else None
    if braces and (described := _DESCRIBED.fullmatch(inner)):
        answer = _of(trimmed(described[1]))
        if answer.kind == "list" and " or " in inner and all(part.kind == "tuple" for part in answer.parts):
            return replace(answer, kind="union")
        return answer if answer.kind in ("tuple", "union") else Answer("beyond")
    if ("|" in inner and braces) or "..." in inner:
        return Answer("beyond")
    kind = "set" if braces else "tuple"
    items = tuple(_expanded([_of(part) for part in parts]) if braces else [_of(part) for part in parts])
    return Answer(kind, (("{", "}") if braces else (opening, closing), *items))


_DESCRIBED = re.compile(r"\\?[A-Za-z]\s*(?:\\in\s*[^|:<>]{1,20})?[|:]\s*(.+)")


def _expanded(items: list[Answer]) -> list[Answer]:
    """1 ± 2 within a list is two of its items."""
    return [part for item in items for part in (item.parts if item.kind == "list" else (item,))]


def _relations(text: str) -> Answer | None:
    """`x = 5`, `y = 2x + 3`, `x > 5`, `a < x < b`, `x \\in S`, `5x - 7y = 0`."""
    pieces = _split(text, _RELATION)
    if not pieces[1:]:
        return None
    sides = [trimmed(piece) for piece in pieces]
    found = [_RELATION_NAMES.get(m, m) for m in _separators(text, _RELATION)]
    if "\\implies" in found or "\\to" in found or "\\iff" in found:
        last = max(i for i, name in enumerate(found) if name in ("\\implies", "\\to", "\\iff"))
        return _of(trimmed("".join(_interleaved(sides[last + 1 :], found[last + 1 :]))))
    if "\\approx" in found:
        first = found.index("\\approx")
        if first == 0 and _is_variable(sides[0]):
            return replace(_of(sides[1]), name=sides[0])
        return _of(trimmed("".join(_interleaved(sides[: first + 1], found[:first])))) if sides[first] else _of(sides[1])
    if not all(sides):
        if found == ["="] and sides[1]:
            return _of(sides[1])
        return Answer("unknown")
    if found[-1] == "\\in" and len(found) == 1:
        return replace(_of(sides[1]), name=sides[0])
    if set(found) == {"="}:
        return _equation(sides)
    ordered = len(found) <= 2 and set(found) <= {"<", ">", "\\leq", "\\geq"}
    if ordered and (interval := _interval(sides, found)) is not None:
        return interval
    try:
        trees = tuple(formula.parse(_joined_numbers(side)) for side in sides)
    except Malformed:
        return Answer("unknown")
    except Beyond:
        return Answer("beyond")
    return Answer("relation", (tuple(found), trees))


def _interleaved(sides: list[str], found: list[str]) -> list[str]:
    return [p for pair in zip(sides, [*(f" {f} " for f in found), ""], strict=True) for p in pair]


def _equation(sides: list[str]) -> Answer:
    first, last = sides[0], sides[-1]
    if _NAME.fullmatch(first) and _name_like(first):
        return replace(_of(last), name=first)
    if _NAME.fullmatch(last) and _name_like(last) and len(sides) == 2 and not words.is_text(first):
        return replace(_of(first), name=last)
    try:
        trees = [formula.parse(_joined_numbers(side)) for side in sides]
    except Malformed:
        return Answer("unknown")
    except Beyond:
        return Answer("beyond")
    if not any(map(formula.symbols, trees)):  # 2 + 3 = 5
        return _of(last) if all(formula.same(tree, trees[-1]) for tree in trees) else Answer("unknown")
    if len(sides) > 2:
        return Answer("relation", (("=",) * (len(sides) - 1), tuple(trees)))
    return Answer("equation", (Node("+", (trees[0], Node("-", (trees[1],)))),))


def _name_like(name: str) -> bool:
    """Whether the letters of a left side name something: one letter, capitals or a word, but no product of letters."""
    bare = re.sub(r"_\s*(?:\{[^{}]*\}|\\?\w+)", "", name)
    bare = re.sub(r"\\[A-Za-z]+|^(?:sin|cos|tan|cot)(?= [A-Z])", "", bare)
    runs = re.findall(r"[A-Za-z]+", re.sub(r"\([^()]*\)", "", bare) if not bare.startswith("(") else bare)
    return all(len(run) == 1 or run.isupper() or words.is_word(run) for run in runs)


def _interval(sides: list[str], found: list[str]) -> Answer | None:
    """The interval of a < x ≤ b or x > a, with open or closed ends."""
    if len(found) == 1 and any(side.startswith("-") and _is_variable(side[1:]) for side in sides):
        sides = [side[1:] if side.startswith("-") else f"-({side})" for side in sides]
        found = [_FLIPPED[found[0]]]
    middle = 1 if len(found) == 2 else 0 if _is_variable(sides[0]) else 1
    if not _is_variable(sides[middle]):
        return None
    low, high = ("(", "-\\infty"), (")", "\\infty")
    for position, name in enumerate(found):
        other = sides[position] if position + 1 == middle else sides[position + 1]
        name = _FLIPPED[name] if position + 1 == middle else name  # as seen from the variable
        if name in (">", "\\geq"):
            low = ("[" if name == "\\geq" else "(", other)
        else:
            high = ("]" if name == "\\leq" else ")", other)
    ends = tuple(_of(end) for end in (low[1], high[1]))
    if len(found) == 2 and "\\infty" in low[1] + high[1]:
        return None
    if any(end.kind != "formula" for end in ends):
        return None
    return Answer("tuple", ((low[0], high[0]), *ends), name=sides[middle])


_VARIABLE = re.compile(r"\\?[A-Za-z]+'?(?:_(?:\{\w+\}|\w))?(?:\([a-z]\))?")


def _is_variable(side: str) -> bool:
    return _VARIABLE.fullmatch(side) is not None and _name_like(side)


def _ratio(text: str) -> Answer | None:
    parts = _split(text, re.compile(r"\s*:\s*|(?<=[0-9])\s+to\s+(?=[0-9])"))
    if not 2 <= len(parts) <= 6:
        return None
    items = tuple(_of(trimmed(part)) for part in parts)
    return Answer("ratio", items) if all(item.kind == "formula" for item in items) else None


def _plus_minus(text: str) -> Answer | None:
    if "\\pm" not in text and "\\mp" not in text:
        return None
    signs = [text.replace("\\pm", a).replace("\\mp", b) for a, b in (("+", "-"), ("-", "+"))]
    return Answer("list", tuple(_of(trimmed(sign)) for sign in signs))


_RAISED = {"squared": "^2", "cubed": "^3", "factorial": "!"}


def _measured(text: str) -> Answer | None:
    """A value with a unit, a currency, a percent sign or the words of what is counted."""
    rest, currency = units.prefix(text)
    if currency:
        answer = _of(trimmed(rest))
        return (
            replace(answer, unit=answer.unit if "%" in answer.unit else currency) if answer.kind == "formula" else None
        )
    if (bracketed := _COUNTED.fullmatch(text)) and all(map(words.is_word, bracketed[2].split())):
        text = f"{bracketed[1]} {bracketed[2]}"  # 18 (eggs)
    start = _unit_start(text) if len(text) <= LONGEST_PROSE else 0
    if not start:
        return None
    value, phrase = trimmed(text[:start]), text[start:].strip()
    found = re.findall(r"\\?[A-Za-z]+", phrase)
    if found and found[0].lower() in words.TIMES and len(found[0]) > 1:
        rest = phrase[len(found[0]) :].strip()
        answer = _of(f"({value})*{words.TIMES[found[0].lower()]}" + (f" {rest}" if rest else ""))
        return answer if answer.kind == "formula" else Answer("unknown")
    if phrase in _RAISED:
        return _of(f"({value}){_RAISED[phrase]}")
    if any(word.lower() in ("and", "or", "to", "base") for word in found):
        return None
    if found and (phrase.lower() == "per cent" or all(w.lower() in units.PERCENT for w in found)):
        answer = _of(value)
        return replace(answer, unit="%") if answer.kind in ("formula", "list") else None
    known = [
        units.is_unit(w) or w in ("per", "square", "cubic", "squared", "cubed", "sq", "a", "an", "of") for w in found
    ]
    single = len(found) == 1 and len(found[0]) == 1 and "$€£¥₹¢₩₽".find(phrase) < 0
    plain_words = all(k or words.is_word(w) or (len(w) > 4 and w.islower()) for k, w in zip(known, found, strict=True))
    joined = len(found) > 1 and all(len(w) == 1 for w in found) and not any(c in phrase for c in "/^")
    if not plain_words or joined or any(w.startswith("\\") and not k for k, w in zip(known, found, strict=True)):
        return None
    answer = _of(value)
    if answer.kind not in ("formula", "tuple", "ratio") or answer.unit:
        return None
    measured = replace(answer, unit=phrase, text=text)
    if single and not phrase.startswith("°"):
        return replace(_formula(text), other=measured) if _formula(text).kind == "formula" else measured
    return measured


def _unit_start(text: str) -> int:
    """Where the words at the end of the text begin, all of which may be a unit's; 0 if there are none."""
    for match in _UNIT_START.finditer(text, max(0, len(text) - units.LONGEST)):
        position = match.end()
        while position < len(text) and (piece := _UNIT_PIECE.match(text, position)):
            position = piece.end()
        if position == len(text):
            return match.start()
    return 0


def _percent(text: str) -> Answer | None:
    if not text.endswith("%"):
        return None
    value = trimmed(text[:-1])
    answer = _of(value) if not value.endswith("%") else Answer("unknown")
    return replace(answer, unit="%") if answer.kind == "formula" else None


def _formula(text: str) -> Answer:
    try:
        tree = formula.parse(_joined_numbers(text))
    except (Malformed, Beyond) as error:
        closed = sum(map(text.count, _OPEN)) == sum(map(text.count, _CLOSE))
        beyond = closed and (isinstance(error, Beyond) or _CALCULUS.search(text))
        return Answer("beyond" if beyond else "unknown", text=text)
    if formula.undefined(tree):
        return Answer("unknown", text=text)
    unit = ""
    if isinstance(tree, Node) and tree.name == "°":
        tree, unit = tree.arguments[0], "°"
    return Answer("formula", (tree,), text, unit=unit)


def _numbers_first(text: str) -> Answer | None:
    joined = _joined_numbers(text)
    return replace(_of(joined), text=text) if joined != text else None


# In this order: what is looked for later would misread what is found earlier.
_READERS = (
    _option, _time, _base, _matrix, _numbers_first, _text, _union, _french, _list, _bracketed, _relations, _prose,
    _plus_minus, _percent, _measured, _ratio, _formula,
)  # fmt: skip


# ---- scanning --------------------------------------------------------------------------------------------------


def _outside_brackets(text: str, opening: str = _OPEN):
    """Whether a position is within no bracket; intervals may close what another bracket opened."""
    if not any(c in text for c in opening):
        return lambda position: True
    closing = _CLOSE[: len(opening)]
    depths, depth = [], 0
    for character in text:
        depth -= character in closing
        depths.append(depth)
        depth += character in opening
    return lambda position: depths[position] <= 0


def _split(text: str, separator: re.Pattern) -> list[str]:
    """The text at the separators outside of brackets."""
    parts, last = [], 0
    for match in _outside(text, separator):
        parts.append(text[last : match.start()])
        last = match.end()
    return [*parts, text[last:]]


def _separators(text: str, separator: re.Pattern) -> list[str]:
    return [match[0] for match in _outside(text, separator)]


def _outside(text: str, separator: re.Pattern) -> list[re.Match]:
    matches = list(separator.finditer(text))
    if not matches:
        return []
    outside = _outside_brackets(text)
    return [match for match in matches if outside(match.start())]


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes; -1 if it does not."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] in _OPEN:
            depth += 1
        elif text[position] in _CLOSE:
            depth -= 1
            if depth == 0:
                return position - (text[position] == "}" and text[position - 1] == "\\")
    return -1


# ---- comparison ------------------------------------------------------------------------------------------------


def same(gold: Answer, answer: Answer, rules) -> bool | None:
    """Whether `answer` is right where `gold` is, by the rules of scoring.Settings; None if the verifier has to look."""
    if _names_differ(gold.name, answer.name):
        return False
    alike = (gold.kind, gold.text, gold.unit) == (answer.kind, answer.text, answer.unit)
    if alike and any(c.isalnum() for c in gold.text):
        return True
    if "unknown" in (gold.kind, answer.kind) or "beyond" in (gold.kind, answer.kind):
        return _left_to_the_verifier(gold, answer)
    if gold.kind == "text" or answer.kind == "text":
        stated = _IS.search(answer.text)
        said = {words.normal(answer.text), words.normal(answer.text[stated.end() :] if stated else "")}
        return gold.kind == answer.kind and words.normal(gold.text) in said
    if gold.kind == "option" or answer.kind == "option":
        return _same_option(gold, answer, rules)
    gold, answer = _aligned(gold, answer)
    if gold.kind != answer.kind:
        return False
    return _SAME[gold.kind](gold, answer, rules)


def _left_to_the_verifier(gold: Answer, answer: Answer) -> bool | None:
    """What is no formula is wrong where the gold is one: math-verify would take its last number, or half of it."""
    if answer.kind == "unknown" and (gold.kind not in ("unknown", "beyond") or _several_words(answer.text)):
        return False
    return False if {gold.kind, answer.kind} & {"option", "text", "time", "base"} else None


def _several_words(text: str) -> bool:
    return any(words.is_word(run) for run in re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", text))


def _names_differ(a: str, b: str) -> bool:
    """x and y do, r and the radius do not."""
    a, b = (re.sub(r"[\s{}]", "", name).casefold() for name in (a, b))
    return len(a) == len(b) == 1 and a != b


def _aligned(gold: Answer, answer: Answer) -> tuple[Answer, Answer]:
    """Readings of one kind, where both have one."""
    if gold.kind == "formula" and answer.kind == "formula":
        if answer.other and not formula.symbols(gold.parts[0]):
            answer = answer.other
        if gold.other and not formula.symbols(answer.parts[0]) and answer.unit:
            gold = gold.other
        return gold, answer
    for x, y, turn in ((gold, answer, 1), (answer, gold, -1)):
        aligned = _as(x, y) if turn == 1 or x.kind != "ratio" else None
        if aligned is not None:
            return (x, aligned) if turn == 1 else (aligned, x)
    return gold, answer


def _as(x: Answer, y: Answer) -> Answer | None:
    """y read as an answer of x's kind; None if it cannot be."""
    if x.kind == "equation" and y.kind == "formula" and y.name:
        try:
            left = formula.parse(y.name)
        except (Malformed, Beyond):
            return None
        return Answer("equation", (Node("+", (left, Node("-", (y.parts[0],)))),), y.text)
    if x.kind == "formula" and y.kind == "list" and len(y.parts) == 2:
        if _MAYBE_DECIMAL.fullmatch(y.text):
            decimal = _of(y.text.replace(",", ".", 1))
            return decimal.other or decimal
        if _MIXED.fullmatch(y.text):  # 2 and 1/3
            return _formula(re.sub(r"\s*and\s*", "+", y.text))
    if x.kind == "matrix" and y.kind == "tuple" and all(part.kind == "tuple" for part in y.parts[1:]):
        return Answer("matrix", tuple(row.parts[1:] for row in y.parts[1:]))
    if x.kind == "list" and y.kind == "formula" and _COMMAS.fullmatch(y.text):
        return Answer("list", tuple(_of(item) for item in y.text.split(",")), y.text)
    if x.kind == "formula" and y.kind == "set" and len(y.parts) == 2:
        return y.parts[1] if y.parts[1].kind == "formula" else None
    if x.kind == "set" and y.kind == "list":
        return replace(y, kind="set", parts=(("{", "}"), *_expanded(list(y.parts))))
    if x.kind == "tuple" and y.kind == "list" and x.parts[0] == ("(", ")") and len(x.parts) > 2:
        return replace(y, kind="tuple", parts=(x.parts[0], *y.parts))
    if x.kind == "union" and y.kind == "list" and all(part.kind == "tuple" for part in y.parts):
        return replace(y, kind="union")
    if x.kind == "ratio" and y.kind == "time":
        return _ratio(y.text)
    return None


def _same_option(gold: Answer, answer: Answer, rules) -> bool | None:
    if gold.kind == answer.kind == "option":
        a, b = gold.parts[0], answer.parts[0]
        return a == b or (rules.small_letters and a.upper() == b.upper())
    option, other = (gold, answer) if gold.kind == "option" else (answer, gold)
    letter, rest = option.parts
    if rest:  # (A) 5 is 5
        value = _of(rest)
        return same(value, other, rules) if option is gold else same(other, value, rules)
    given = other.text.strip("()[]{} .")
    return given == letter or (rules.small_letters and given.upper() == letter.upper())


def _same_formula(gold: Answer, answer: Answer, rules) -> bool | None:
    a, b = gold.parts[0], answer.parts[0]
    percent = [x.unit == "%" for x in (gold, answer)]
    if percent[0] == percent[1] or any(percent):
        factor = _conversion(gold.unit, answer.unit, rules) if not any(percent) else Fraction(1)
        if factor is None or (any(percent) and not all(percent) and units.read(gold.unit + answer.unit) is not None):
            return False
        if factor != 1:
            b = Node("*", (b, formula.Number(factor, None)))
    equal = formula.same(a, b)
    if equal is False and percent[0] != percent[1] and rules.percent_as_fraction:
        hundredth = formula.Number(Fraction(1, 100), None)
        x, y = (Node("*", (t, hundredth)) if p else t for t, p in zip((a, b), percent, strict=True))
        return formula.same(x, y)
    return equal


def _conversion(gold: str, answer: str, rules) -> Fraction | None:
    """What an answer's value is multiplied by to be in the gold's unit; None if the two measure different things."""
    if not gold or not answer or gold == answer or not rules.compare_units:
        return Fraction(1)
    a, b = units.read(gold), units.read(answer)
    if a is None or b is None:
        return Fraction(1)
    return b.size / a.size if a.measures == b.measures else None


def _same_items(gold: tuple, answer: tuple, rules) -> bool | None:
    if len(gold) != len(answer):
        return False
    return _all(same(g, a, rules) for g, a in zip(gold, answer, strict=True))


def _all(verdicts) -> bool | None:
    verdict: bool | None = True
    for v in verdicts:
        if v is False:
            return False
        verdict = verdict if v else None
    return verdict


def _same_unordered(gold: tuple, answer: tuple, rules) -> bool | None:
    """As multisets."""
    gold, left = tuple(_expanded(list(gold))), _expanded(list(answer))
    if len(gold) != len(left):
        return False
    verdict: bool | None = True
    for item in gold:
        verdicts = [same(item, other, rules) for other in left]
        if True in verdicts:
            del left[verdicts.index(True)]
        elif None in verdicts:
            verdict = None
        else:
            return False
    return verdict


def _same_tuple(gold: Answer, answer: Answer, rules) -> bool | None:
    return gold.parts[0] == answer.parts[0] and _same_items(gold.parts[1:], answer.parts[1:], rules)


def _same_set(gold: Answer, answer: Answer, rules) -> bool | None:
    return _same_unordered(gold.parts[1:], answer.parts[1:], rules)


def _same_list(gold: Answer, answer: Answer, rules) -> bool | None:
    return _same_unordered(gold.parts, answer.parts, rules)


def _same_matrix(gold: Answer, answer: Answer, rules) -> bool | None:
    if len(gold.parts) != len(answer.parts):
        return False
    return _all(_same_items(g, a, rules) for g, a in zip(gold.parts, answer.parts, strict=True))


def _same_equation(gold: Answer, answer: Answer, rules) -> bool | None:
    return formula.proportional(gold.parts[0], answer.parts[0])


def _same_relation(gold: Answer, answer: Answer, rules) -> bool | None:
    (names, sides), (others, theirs) = gold.parts, answer.parts
    if names != others:
        others, theirs = tuple(_FLIPPED.get(name, name) for name in reversed(others)), theirs[::-1]
    if names != others:
        return False
    equal = _all(formula.same(a, b) for a, b in zip(sides, theirs, strict=True))
    return None if equal is False and len(names) == 1 else equal


def _same_plain(gold: Answer, answer: Answer, rules) -> bool:
    return gold.parts == answer.parts


def _same_time(gold: Answer, answer: Answer, rules) -> bool:
    *a, a_known = gold.parts
    *b, b_known = answer.parts
    if a_known and b_known:
        return a == b
    return (a[0] % 12, *a[1:]) == (b[0] % 12, *b[1:])


def _same_ratio(gold: Answer, answer: Answer, rules) -> bool | None:
    """Ratios are equal if their terms are in proportion."""
    if len(gold.parts) != len(answer.parts):
        return False
    a, b = ([item.parts[0] for item in x.parts] for x in (gold, answer))
    return _all(formula.same(Node("*", (a[0], y)), Node("*", (b[0], x))) for x, y in zip(a[1:], b[1:], strict=True))


_SAME = {
    "formula": _same_formula, "list": _same_list, "tuple": _same_tuple, "set": _same_set, "union": _same_list,
    "matrix": _same_matrix, "equation": _same_equation, "relation": _same_relation, "base": _same_plain,
    "time": _same_time, "ratio": _same_ratio,
}  # fmt: skip
