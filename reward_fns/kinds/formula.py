"""Formulas: whatever is computed, and no other kind. Compared by sympy in the guarded worker (algebra.py)."""

import re

from reward_fns import words
from reward_fns.grammar import mark
from reward_fns.kinds import UNKNOWN, Answer

# The longer ones first: sinh is no sin.
NAMES = re.compile(
    "arcsin|arccos|arctan|arccot|arcsec|arccsc|infinity|infty|sinh|cosh|tanh|sqrt|sin|cos|tan|cot|sec|csc|log|exp|gcd"
    "|lcm|max|min|det|sgn|ln|lg|theta|alpha|lambda|omega|beta|phi|pi"
)
TRIGONOMETRIC = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)")
# A percent sign within, two numbers side by side, factorials of factorials.
NO_FORMULA = re.compile(r"%\s*[A-Za-z0-9(\\]|[0-9]\s+[0-9]|!!!")


def read_rest(text: str) -> Answer:
    """A text that no kind claims."""
    balanced = sum(map(text.count, "([{")) == sum(map(text.count, ")]}"))
    runs = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{4,}|\b(?:and|the|for|not|are)\b", text)
    computed = mark(text) in ("value", "brackets", "relation") and re.search(r"\w|\\", text)
    if not computed or not balanced or any(map(words.is_word, runs)) or NO_FORMULA.search(text):
        return UNKNOWN
    if text.endswith("°") and not TRIGONOMETRIC.search(text):
        return Answer("formula", (text.removesuffix("°"),), unit="°")
    return Answer("formula", (text,))


def letters(text: str) -> set[str]:
    """The letters that stand for something in a formula."""
    bare = NAMES.sub(" ", re.sub(r"\\[A-Za-z]+|_\{[^{}]*\}", " ", text))
    return set(re.findall("[A-Za-z]", bare)) - {"e", "i"}


def written(answer: Answer) -> str:
    """A value as text for the worker."""
    if answer.kind == "number":
        return f"\\frac{{{answer.parts[0].numerator}}}{{{answer.parts[0].denominator}}}"
    return answer.parts[0]
