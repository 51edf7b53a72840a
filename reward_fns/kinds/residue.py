"""Remainders: 17 mod 5 is the number 2; 2 (mod 5) is 2, and equal to 7 (mod 5). A remainder by 0 is nothing."""

import re
from fractions import Fraction

from reward_fns.grammar import mark
from reward_fns.kinds import UNKNOWN, Answer
from reward_fns.kinds.number import number

KINDS = ("residue",)
RESIDUE = re.compile(
    r"(.*?)\s*(?:(\(\s*mod\b|\\pmod)|\\(?:bmod|mod)(?![A-Za-z])|\bmod\b|(?<=[0-9])\s*%(?=\s*[0-9]))"
    r"\s*\{?\s*([^{}()]*?)\s*[)}]*"
)


def read(text: str, inner) -> Answer | None:
    """parts: the remainder, the modulus."""
    match = RESIDUE.fullmatch(text) if mark(text) == "value" else None
    if match is None:
        return None
    value, modulus = number(match[1]), number(match[3])
    if not modulus or not modulus[0] or not value:
        return UNKNOWN
    if match[2]:
        return Answer("residue", (value[0], modulus[0]))
    return Answer("number", (Fraction(value[0] % modulus[0]), 0))


def view(answer: Answer, compare) -> Answer | None:
    return Answer("residue", (answer.parts[0], None)) if answer.kind == "number" else None


def same(gold: Answer, answer: Answer, compare) -> bool:
    (a, m), (b, n) = gold.parts, answer.parts
    return a == b if m is None or n is None else m == n and (a - b) % m == 0
