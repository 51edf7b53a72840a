"""Words: `east`, `\\text{even}`. A hedge ("not 5", "either 5 or 6") is words too, equal to nothing but itself."""

import re

from reward_fns import words
from reward_fns.grammar import mark
from reward_fns.kinds import Answer

KINDS = ("text",)
NO_SOLUTION = re.compile(r"(?:there (?:is|are) )?no (?:real )?solutions?(?: exists?)?", re.I)


def read(text: str, inner) -> Answer | None:
    if mark(text) != "words":
        return None
    return Answer("set") if NO_SOLUTION.fullmatch(text) else Answer("text")


def same(gold: Answer, answer: Answer, compare) -> bool:
    return words.normal(gold.text) == words.normal(answer.text)
