"""MATH and its kin: the final answer equals a gold answer, in whatever notation."""

import re
from functools import lru_cache

from reward_fns import answer, extract, golds, guard, words
from reward_fns.verdict import UnparsableGold, Verdict

# Left standing, these restate a question: `\\sum_{k=1}^{100} k`.
UNEVALUATED = re.compile(r"\\(?:sum|prod|int|iint|oint|lim)(?![A-Za-z])|[∑∏∫]")

SOLUTION = re.compile(r"\\boxed|final answer is", re.IGNORECASE)


def judge(text: str, gold, settings) -> Verdict:
    accepted_golds = accepted(gold)
    check_gold(accepted_golds, settings)
    found = extract.final(text, settings.boxes_in_thinking)
    if found is None or (settings.last_formula and answer.read(found).kind == "unknown"):
        candidates = extract.bare(found or text, settings.last_formula)
        found = next(filter(_is_answer, candidates), None)
    return Verdict(same(accepted_golds, found, settings), found) if found else Verdict(False)


def _is_answer(text: str) -> bool:
    """Whether a text without box and announcement is an answer; words are one as a formula only: `$\\text{odd}$`."""
    read = answer.read(text)
    return read.kind != "unknown" and (read.kind != "text" or (text[:1] in "$\\" and not words.hedged(text)))


def check_gold(gold, settings) -> None:
    """Raises UnparsableGold if none of the accepted golds can be read."""
    if not any(_readable(text, settings.verify_timeout) for text in accepted(gold)):
        raise UnparsableGold(repr(gold))


def accepted(gold) -> tuple[str, ...]:
    """The accepted golds: one, or a list of which any is right; of a whole solution its answer."""
    found = tuple(
        (extract.final(text) or text if SOLUTION.search(text) else text).strip()
        for text in golds.texts(gold)
        if len(text) <= extract.LONGEST_ANSWER
    )
    if not found:
        raise UnparsableGold(repr(gold))
    return found


@lru_cache(maxsize=65536)
def _readable(gold: str, timeout: float | None) -> bool:
    read = answer.read(gold)
    if read.kind == "formula":
        return guard.defined(read.parts[0], timeout)
    return read.kind != "unknown" or (any(map(str.isalnum, gold)) and gold.count("{") == gold.count("}"))


def same(accepted_golds: tuple[str, ...], found: str, settings) -> bool:
    """Whether `found` equals one of the golds."""
    found = found.strip()
    return (
        bool(found)
        and len(found) <= extract.LONGEST_ANSWER
        and any(_same(gold, found, settings) for gold in accepted_golds)
    )


@lru_cache(maxsize=65536)
def _same(gold: str, found: str, settings) -> bool:
    if not settings.unevaluated and UNEVALUATED.search(found) and not UNEVALUATED.search(gold):
        return False
    return answer.same(answer.read(gold), answer.read(found), settings)
