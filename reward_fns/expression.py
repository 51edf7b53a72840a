"""MATH and its kin: the final answer equals a gold answer, in whatever notation.

Most answers are plain numbers or the gold text itself: those are decided at once. Others are read (kinds.py) and
compared within their kind; what is left, mostly calculus, goes to math-verify in the guarded verifier (guard.py).
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from reward_fns import extract, golds, guard, kinds
from reward_fns.verdict import UnparsableGold, Verdict

# Decimals are short enough for a float to hold them, denominators for 15 digits to tell two fractions apart.
_NUMBER = re.compile(
    r"(?P<whole>[+-]?(?:[1-9][0-9]{0,2}(?:,[0-9]{3}){1,3}|[0-9]{1,9}))(?P<decimals>\.[0-9]{1,6})?"
    r"|(?P<minus>-?)(?:\\[dt]?frac\{(?P<over>-?[0-9]{1,6})\}\{(?P<under>[0-9]{1,4})\}"
    r"|(?P<left>[0-9]{1,6})/(?P<right>[0-9]{1,4}))"
    r"|(?P<mixed>[0-9]{1,6}) ?\\[dt]?frac\{(?P<above>[0-9]{1,6})\}\{(?P<below>[0-9]{1,4})\}"
)
# Text that math-verify finds equal to itself: no comparison of an undefined value (1/0), balanced braces.
_PLAIN_TEXT = re.compile(r"[0-9A-Za-z+\-*/^_=(),|<>\[\]{} \\.!:']{1,300}")
_UNDEFINED = re.compile(r"[/{] ?0 ?(?:[^0-9.]|$)|nan|infty")
# Left standing, these restate a question: `\\sum_{k=1}^{100} k`.
_UNEVALUATED = re.compile(r"\\(?:sum|prod|int|iint|oint|lim)(?![A-Za-z])|[∑∏∫]")


def judge(text: str, gold, settings) -> Verdict:
    accepted_golds = accepted(gold)
    _readable(accepted_golds, settings.verify_timeout)
    answer = extract.final(text, settings.boxes_in_thinking)
    if not answer:
        return Verdict(False)
    return Verdict(same(accepted_golds, answer, settings), answer)


def check_gold(gold, settings) -> None:
    """Raises UnparsableGold if none of the accepted golds can be read."""
    _readable(accepted(gold), settings.verify_timeout)


def accepted(gold) -> tuple[str, ...]:
    """The accepted golds: one, or a list of which any is right."""
    return _accepted(gold) if isinstance(gold, str) else _accepted.__wrapped__(gold)


@lru_cache(maxsize=65536)
def _accepted(gold) -> tuple[str, ...]:
    found = tuple(text.strip() for text in golds.texts(gold) if len(text) <= extract.LONGEST_ANSWER)
    if not found:
        raise UnparsableGold(repr(gold))
    return found


@lru_cache(maxsize=65536)
def _readable(accepted_golds: tuple[str, ...], timeout: float | None) -> None:
    if all(_plain(g) is None and kinds.read(g).kind in ("unknown", "beyond") for g in accepted_golds):
        guard.verify(tuple(map(tidy, accepted_golds)), "", timeout)


def same(accepted_golds: tuple[str, ...], answer: str, settings) -> bool:
    """Whether `answer` equals one of the golds."""
    answer = answer.strip()
    if not answer or len(answer) > extract.LONGEST_ANSWER:
        return False
    decisions = [short_path(gold, answer) for gold in accepted_golds]
    if True in decisions:
        return True
    left = tuple(gold for gold, decision in zip(accepted_golds, decisions, strict=True) if decision is None)
    return bool(left) and _compared(left, answer, settings)


@lru_cache(maxsize=16384)
def _compared(left: tuple[str, ...], answer: str, settings) -> bool:
    if not settings.unevaluated and _UNEVALUATED.search(answer) and not _UNEVALUATED.search("".join(left)):
        return False
    guard.pool().ready()
    read = kinds.read(answer)
    decisions = [kinds.same(kinds.read(gold), read, settings) for gold in left]
    if True in decisions:
        return True
    left = tuple(tidy(gold) for gold, decision in zip(left, decisions, strict=True) if decision is None)
    return bool(left) and _verified(left, f"\\boxed{{{tidy(answer)}}}", settings.verify_timeout)


@lru_cache(maxsize=16384)
def _verified(left: tuple[str, ...], text: str, timeout: float | None) -> bool:
    try:
        return guard.verify(left, text, timeout)[0]  # what raises Killed is not cached
    except UnparsableGold:
        return False  # read here, and not by math-verify


def short_path(gold: str, answer: str) -> bool | None:
    """Whether two answers are equal, where that is plain to see; None where it is not."""
    if gold == answer and _equal_to_itself(gold):
        return True
    g, a = _plain(gold), _plain(answer)
    if g is None or a is None:
        return None
    if g == a:
        return True
    decimal = "." in gold or "." in answer
    return None if decimal and abs(g - a) < Fraction(1, 10**5) else False


def tidy(answer: str) -> str:
    """Drops what changes no answer and hinders math-verify's parser: a final full stop, a percent sign, dollars."""
    if len(answer) > extract.LONGEST_ANSWER:
        return ""
    answer = (
        kinds.formula_in_words(answer)
        .replace("\\!", "")
        .replace("{,}", ",")
        .replace("\\$", "")
        .strip()
        .strip("$")
        .strip()
    )
    answer = answer.removesuffix(".").removesuffix("%").removesuffix("\\")
    return answer.strip()


@lru_cache(maxsize=65536)
def _equal_to_itself(gold: str) -> bool:
    return (
        _PLAIN_TEXT.fullmatch(gold) is not None
        and any(c.isalnum() for c in gold)
        and gold.count("{") == gold.count("}")
        and not _UNDEFINED.search(gold)
    )


@lru_cache(maxsize=65536)
def _plain(answer: str) -> Fraction | None:
    match = _NUMBER.fullmatch(answer)
    if match is None:
        return None
    if match["whole"]:
        return Fraction(match["whole"].replace(",", "") + (match["decimals"] or ""))
    over = int(match["over"] or match["left"] or match["above"])
    under = int(match["under"] or match["right"] or match["below"])
    if under == 0:
        return None
    value = Fraction(over, under) + int(match["mixed"] or 0)
    return -value if match["minus"] else value
