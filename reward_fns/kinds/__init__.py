"""The kinds of answers, one module each: its pattern, its reading and its comparison.

A module has
    KINDS                        the names of the answers that it compares;
    read(text, inner)            the Answer if the text is of this kind, else None; `inner` reads a part of it;
    same(gold, answer, compare)  whether two of them are equal; `compare` (answer.Comparison) compares parts, and has
                                 the settings;
    view(answer, compare)        optional: an answer of another kind as one of this, where it can be meant so.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """An answer that was read: its kind, a name in a module's KINDS or `unknown`, and
    parts: what it is made of, see its module's `read`: of a number (value, decimals), of a formula its text;
    text: its plain form;
    name: the left side of `x = 5`;
    unit: what `5 cm` is measured in, `%` included.
    """

    kind: str
    parts: tuple = ()
    text: str = ""
    name: str = ""
    unit: str = ""


UNKNOWN = Answer("unknown")
