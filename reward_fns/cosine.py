"""Length-aware accuracy (open-rs): value = lo + ½ (hi − lo) (1 + cos πp) with p = length / max_len, in characters."""

import math

RIGHT = (1.0, 0.5)  # from the shortest to the longest
WRONG = (0.0, -0.5)


def cosine(right: bool, length: int, max_len: int, published: bool = False) -> float:
    """The reward of an answer of `length` characters.

    published: as in the public code, where the value rises again beyond max_len; else it stays at its lowest there.
    """
    high, low = RIGHT if right else WRONG
    p = length / max_len
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * (p if published else min(p, 1.0))))
