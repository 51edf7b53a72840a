"""Gold answers as text, however veRL and parquet bring them: text, bytes, numbers, numpy's and lists of these."""

import contextlib
import json
import math
from decimal import Decimal
from fractions import Fraction

from reward_fns.verdict import UnparsableGold


def texts(gold) -> tuple[str, ...]:
    """The accepted golds: one, or a list of which any is right; raises UnparsableGold if there is none.

    A list may come as JSON text, as gpg_verl.data writes it: veRL concatenates validation files, and a column that is
    text in one and a list in another stops it.
    """
    if type(gold) is str and gold and not gold.isspace() and gold[0] not in "[nN<":
        return (gold,)  # as most are
    found = tuple(text for text in _texts(gold, 0) if text.strip())
    if not found:
        raise UnparsableGold(repr(gold))
    return found


def _texts(gold, depth: int) -> list[str]:
    if hasattr(gold, "tolist"):  # numpy's scalars and arrays
        gold = gold.tolist()
    if isinstance(gold, bytes | bytearray):
        gold = gold.decode("utf-8", "replace")
    if isinstance(gold, str) and gold.strip().lower() in ("nan", "<na>"):
        return []  # a missing value that became text
    if isinstance(gold, str) and gold.startswith('["'):
        with contextlib.suppress(ValueError):
            return [str(item) for item in json.loads(gold)]
    if isinstance(gold, list | tuple | set | frozenset):
        return [text for item in gold for text in _texts(item, depth + 1)] if depth < 3 else []
    number = isinstance(gold, int | float | Fraction | Decimal) and not isinstance(gold, bool) and math.isfinite(gold)
    return [str(gold)] if number or isinstance(gold, str) else []
