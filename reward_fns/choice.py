"""Multiple choice (SAT, CV-Bench): the option's text, or its letter where the gold answer is a letter.

A letter counts where it is given as one: `A`, `(A)`, `A. chair`, `the answer is (A)`; the article of `A dog` is none,
and neither is a letter among others or one that is taken back. Options that are values are compared as such: `3
chairs` is 3.
"""

import re

from reward_fns import expression, extract, golds, notation, words
from reward_fns.grammar import trimmed
from reward_fns.verdict import Verdict

_GOLD_LETTER = re.compile(r"\(?([A-H])\)?\.?")
_LETTER = re.compile(r"(?<![A-Za-z])([A-H])(?![A-Za-z])")
_ARTICLE = re.compile(r"\bA(?= [a-z])")
# The letter: alone, in brackets, or before a full stop, a colon or a closing bracket.
_GIVEN = re.compile(
    r"(?:.{0,60}?\b(?:is|be|option|choice|answer|select|choose|pick)\b\s*:?\s*)?"
    r"(?:[(\[]\s*([A-Ha-h])\s*[)\]]\s*[.:,-]?|([A-Ha-h])(?:\s*[.):](?=\s|$)|\s-\s)|([A-Ha-h])\s*$)(.{0,200})",
    re.IGNORECASE | re.DOTALL,
)
_SEVERAL = re.compile(r"\b(?:or|and|nor|either|neither|both|none|not|all|any)\b|n't|[/&|]", re.IGNORECASE)
_DENIED = re.compile(
    r"(?:is|are|was|can|could|must|should|would)"
    r"(?:n['’]t\b|not\b|\b.*\b(?:not|never|false|wrong|incorrect|bad|excluded|eliminated|out)\b)",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"(?:(?:so|thus|therefore)[, ]+)?(?:(?:the|my|your)\s+)?(?:(?:final|correct|right|best)\s+)?"
    r"(?:answer|option|choice|it|that|this|there|object|they|he|she)?\s*(?:is|are|would be|was|were|:)\s*:?\s*",
    re.IGNORECASE,
)


def judge(text: str, gold, settings) -> Verdict:
    accepted = golds.texts(gold)
    answer = extract.tagged_answer(text)
    return Verdict(_right(accepted, answer, settings), answer)


def check_gold(gold, settings) -> None:
    golds.texts(gold)


def _right(accepted: tuple[str, ...], answer: str, settings) -> bool:
    letters = {match[1] for gold in accepted if (match := _GOLD_LETTER.fullmatch(gold.strip()))}
    texts = [gold for gold in accepted if not _GOLD_LETTER.fullmatch(gold.strip())]
    plain = trimmed(notation.plain(answer)).rstrip("!").strip()
    if not plain:
        return False
    given, rest = _letter(plain, settings.small_letters)
    if given and letters:
        return given in letters
    return any(_equal(gold, rest if given and rest else plain, settings) for gold in texts)


def _letter(answer: str, small: bool) -> tuple[str, str]:
    """(the letter that the answer gives, what follows it); "" if it gives none, or several."""
    match = _GIVEN.fullmatch(answer)
    if match is None:
        return "", ""
    letter, rest = next(filter(None, match.groups()[:3])), trimmed(match[4].strip())
    before = answer[: match.start(1) if match[1] else match.start(2) if match[2] else match.start(3)]
    if (letter.islower() and not small) or _SEVERAL.search(before) or _DENIED.match(rest):
        return "", ""
    others = set(_LETTER.findall(_ARTICLE.sub("", f"{before} {rest}")))
    if others - {letter.upper()} or (_SEVERAL.search(rest) and _LETTER.search(rest)):
        return "", ""
    return letter.upper(), rest


def _equal(gold: str, answer: str, settings) -> bool:
    if words.normal(gold) == words.normal(answer):
        return True
    stated = _LEAD.match(answer)
    if stated and stated.end() and words.normal(gold) == words.normal(answer[stated.end() :]):
        return True
    # Options that are values: `3` is `3.0` and `three`. Other words need no mathematics.
    answer = words.with_digits(answer)
    with_digits = any(c.isdigit() for c in gold) and any(c.isdigit() for c in answer)
    return with_digits and expression.same((gold,), answer, settings)
