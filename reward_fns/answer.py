"""What an answer states, and whether two answers state the same.

    same(read("x = \\dfrac12"), read("0.5"), Settings())  ->  True

Kinds that differ are not equal: a point is no set, a time no ratio, a word no product of letters. The kinds are in
kinds/, one module each; a text is read by exactly one of them (by its outermost mark, grammar.py), in whatever order
they are asked.
"""

import re
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

from reward_fns import extract, guard, notation, prose, words
from reward_fns.kinds import (
    UNKNOWN,
    Answer,
    base,
    colon,
    formula,
    matrix,
    number,
    option,
    point,
    quantity,
    relation,
    residue,
    series,
)
from reward_fns.kinds import text as text_

MODULES = (number, quantity, base, residue, colon, option, text_, series, point, matrix, relation)
COMPARED_BY = {kind: module for module in MODULES for kind in module.KINDS}
LONGEST = 4096
# Digits of other scripts, controls of direction: nobody honest needs them.
ODD = re.compile("[０-９\u202a-\u202e\u2066-\u2069\0\ufffd]|[^\x00-\U0000d7ff\ue000-\U0010ffff]")
END_OF_TEXT = re.compile(r"\s*(?:<\|\w{1,20}\|>(?:user)?|</s>)\s*$")
DIVIDED_BY_ZERO = re.compile(r"(?:/|\}\s*\{) ?0 ?(?:[^0-9.]|$)")


@lru_cache(maxsize=32768)
def read(text: str) -> Answer:
    """The answer in `text`, in any notation."""
    if len(text) > LONGEST or ODD.search(text):
        return replace(UNKNOWN, text=text[:LONGEST])
    plain = notation.plain(only_formula(END_OF_TEXT.sub("", text)))
    if len(plain) > LONGEST:
        return replace(UNKNOWN, text=plain[:LONGEST])
    try:
        return read_plain(plain)
    except RecursionError:
        return replace(UNKNOWN, text=plain)


def only_formula(text: str) -> str:
    """The one formula of a sentence: `Here it is: $5$`."""
    spans = list(extract.SPAN.finditer(text))
    if len(spans) != 1:
        return text
    before, after = text[: spans[0].start()], text[spans[0].end() :].strip(" .")
    if after or not re.fullmatch(r"[A-Za-z ,:']*[A-Za-z]{2}[A-Za-z ,:']*", before) or words.hedged(before):
        return text
    return next(filter(None, spans[0].groups()))


def read_plain(text: str) -> Answer:
    """The answer in a text in plain notation."""
    value = prose.value(text)
    joined = number.joined(words.with_digits(value))
    claims = (answer for module in MODULES if (answer := module.read(joined, read_plain)) is not None)
    answer = next(claims, None) or formula.read_rest(joined) if joined else UNKNOWN
    return answer if answer.text else replace(answer, text=value)


class Comparison:
    """Compares answers by the rules of scoring.Settings; `settings` and `timeout` (processor seconds, or None) are
    theirs."""

    def __init__(self, settings):
        self.settings, self.timeout = settings, settings.verify_timeout

    read = staticmethod(read_plain)

    def formulas(self, gold: str, answer: str, factor: Fraction = Fraction(1), tolerance: float = 0.0) -> bool:
        """Whether gold = factor · answer, by sympy."""
        return guard.equal((gold,), (answer,), factor, tolerance, timeout=self.timeout)

    def __call__(self, gold: Answer, answer: Answer) -> bool:
        """Whether `answer` is right where `gold` is."""
        if relation.names_differ(gold, answer):
            return False
        answer = relation.same_argument(gold, answer, self)
        alike = (gold.kind, gold.text, gold.unit) == (answer.kind, answer.text, answer.unit)
        if alike and any(map(str.isalnum, gold.text)):
            return not DIVIDED_BY_ZERO.search(gold.text)
        if "approximation" in (gold.kind, answer.kind):
            gold, answer = (relation.holds(x, self) if x.kind == "approximation" else x for x in (gold, answer))
            return gold is not None and answer is not None and self(gold, answer)
        if (gold.kind == "option") != (answer.kind == "option"):
            stated = [self.read(x.parts[1]) if x.kind == "option" and x.parts[1] else x for x in (gold, answer)]
            if stated != [gold, answer]:
                return self(*stated)  # (A) 5 is 5
        if (theirs := self.view(gold, answer)) is not None:
            return COMPARED_BY[gold.kind].same(gold, theirs, self)
        mine = None if gold.kind == "time" else self.view(answer, gold)  # a ratio may look like a time, a time is none
        return mine is not None and COMPARED_BY[answer.kind].same(mine, answer, self)

    def view(self, gold: Answer, answer: Answer) -> Answer | None:
        """`answer` as one of gold's kind; None if it cannot be meant so."""
        module = COMPARED_BY.get(gold.kind)
        if module and gold.kind == answer.kind:
            return answer
        return module.view(answer, self) if hasattr(module, "view") else None


def same(gold: Answer, answer: Answer, settings) -> bool:
    """Whether `answer` is right where `gold` is; raises Killed where the worker that compares formulas was stopped."""
    return Comparison(settings)(gold, answer)
