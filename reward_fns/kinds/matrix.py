"""Matrices: rows of entries, in whatever brackets. A determinant (vmatrix) is a number, and no matrix."""

import re

from reward_fns.grammar import mark, trimmed
from reward_fns.kinds import UNKNOWN, Answer

KINDS = ("matrix",)
MATRIX = re.compile(
    r"[(\[]?\s*\\begin\s*\{([pbB]?matrix|array|smallmatrix)\}(?:\s*\{[lcr|]*\})?(.*?)\\end\s*\{\1\}\s*[)\]]?", re.S
)
DETERMINANT = re.compile(r"[^=]*\\begin\s*\{[vV]matrix\}.*", re.S)


def read(text: str, inner) -> Answer | None:
    """parts: the rows, each of its entries; of a sum or a product of matrices, which has no rows yet, none."""
    if mark(text) != "matrix":
        return None
    text = re.sub(r"\\(begin|end) ", r"\\\1", text.rpartition("=")[2].strip())
    match = MATRIX.fullmatch(text)
    if match is None or "\\begin" in match[2]:
        computed = DETERMINANT.fullmatch(text) or text.count("\\begin") > 1
        return Answer("formula", (text.replace(" and ", "&"),)) if computed else UNKNOWN
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[2]) if row.strip()]
    rows = tuple(tuple(inner(trimmed(cell)) for cell in re.split(r"&| and ", row)) for row in rows)
    return Answer("matrix", rows, text.replace(" and ", "&"))


def view(answer: Answer, compare) -> Answer | None:
    """A formula of matrices; [[1, 2], [3, 4]]."""
    if answer.kind == "formula" and "matrix" in answer.parts[0]:
        return Answer("matrix", (), answer.parts[0])
    rows = answer.parts[1:] if answer.kind == "tuple" else ()
    listed = rows and all(row.kind == "tuple" for row in rows)
    return Answer("matrix", tuple(row.parts[1:] for row in rows)) if listed else None


def same(gold: Answer, answer: Answer, compare) -> bool:
    if not gold.parts or not answer.parts:
        return compare.formulas(gold.text, answer.text)
    return len(gold.parts) == len(answer.parts) and all(
        len(g) == len(a) and all(map(compare, g, a)) for g, a in zip(gold.parts, answer.parts, strict=True)
    )
