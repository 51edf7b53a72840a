"""A letter of a choice: C, (C), C., (C) 12, Option C. With a value behind it, it is either."""

from dataclasses import replace

from reward_fns.grammar import OPTION, is_option, mark, trimmed
from reward_fns.kinds import Answer

KINDS = ("option",)


def read(text: str, inner) -> Answer | None:
    """parts: the letter, and the text behind it."""
    if mark(text) != "option":
        return None
    match = OPTION.fullmatch(text)
    rest = trimmed(match[3])
    return Answer("unknown") if rest and is_option(rest) else Answer("option", (match[1] or match[2], rest))  # (A)(B)


def view(answer: Answer, compare) -> Answer | None:
    """A letter that was read as something else: c."""
    letter = answer.text.strip("()[]{} .")
    return replace(answer, kind="option", parts=(letter, "")) if len(letter) == 1 else None


def same(gold: Answer, answer: Answer, compare) -> bool:
    a, b = gold.parts[0], answer.parts[0]
    return a == b or (compare.settings.small_letters and a.upper() == b.upper())
