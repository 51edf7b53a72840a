"""veRL's name of a row in TransferQueue, `{uid}_{session}_{output}`, read in one place. A uid may hold `_` itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch

from gpg_verl.algorithm.advantage import Sessions


class RowKey(NamedTuple):
    """uid: the prompt's. session: which of its responses. output: which of the response's outputs (turns)."""

    uid: str
    session: int
    output: int

    @classmethod
    def of(cls, key: str) -> RowKey:
        uid, session, output = key.rsplit("_", 2)
        return cls(uid, int(session), int(output))


def sessions_of(keys: Sequence[RowKey]) -> Sessions | None:
    """Which rows are outputs of one response; None where every response has one output, its first."""
    if not any(key.output for key in keys):
        return None
    sessions = pd.DataFrame(keys).groupby(["uid", "session"], sort=False)
    of_row, final = sessions.ngroup(), sessions["output"].idxmax()
    return Sessions(torch.tensor(of_row.to_numpy()), torch.tensor(final.to_numpy()))


def in_dispatch_order(keys: Sequence[RowKey], dispatched: dict[str, int]) -> list[int]:
    """Rows by group, session and output; `dispatched`: uid → its place in the order in which prompts were sent to the
    rollout. veRL lists them as they finished, which is a question of time, and decides in which mini-batch a group is
    and in which order the gradient is summed.
    """
    places = [(dispatched.get(key.uid, -1), key.session, key.output) for key in keys]
    return sorted(range(len(keys)), key=places.__getitem__)
