"""β_th: which groups enter a step, and how many prompts to ask for. Plain Python: no torch, no veRL, no clock.

A step of S groups needs V = ⌈β_th · S⌉ valid ones. Groups are numbered in the order in which their prompts were
dispatched, and the step takes the shortest prefix of at least S usable groups of which at least V are valid, every
group in it judged. It trains on the prefix's valid groups and fills up with zero-variance ones, both in dispatch order.
So a group's place depends on its number and its validity, never on how soon it finished: what is trained on has the
distribution that generating one group after the other would give. Starting as soon as V valid
groups are there would prefer short responses.

How many prompts are asked for does depend on what has finished so far. It changes how long the step takes and what is
thrown away, not where the prefix ends.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import Enum

# The two numbers below only trade time against prompts generated in vain; examples/benchmark/refill.py measures both.

# Before any group is judged, as if this share of a batch had been, half way between β_th and all of them valid: a plain
# batch will do until groups say otherwise. The first to finish are few, and short responses are not like the others.
PRIOR_WEIGHT = 0.35
# What past steps' groups weigh against this step's. They are all of their steps, not the first to finish, and the
# policy moves slowly; but it moves.
DECAY = 0.5


class GroupStatus(Enum):
    """What a finished group is worth: it has a gradient, or none because its rewards are one, or no rows at all."""

    VALID = "valid"
    ZERO_VARIANCE = "zero variance"
    EMPTY = "empty"


@dataclass(frozen=True)
class StepSelection:
    """What a step takes, all in dispatch order.

    selected: the groups of the step, valid ones first, at most S.
    unused: the other groups of the prefix.
    rest: groups dispatched after the prefix, judged or not.
    valid, judged: counts over the prefix.
    surplus_valid: groups of the rest known to be valid.
    bound_reached: the prefix is as long as it may be, and still lacks groups.
    """

    selected: list[Hashable]
    unused: list[Hashable]
    rest: list[Hashable]
    valid: int
    judged: int
    surplus_valid: int
    bound_reached: bool


class Refill:
    """The groups of the running step. Told what happens (`dispatch`, `judge`, `remove`), it says what the step takes
    (`select`) and how many prompts it lacks (`num_prompts_to_request`).

    Args:
        batch_size: S, the groups of a step.
        beta_th: β_th in (0, 1].
        max_batches: a step considers at most max_batches · S groups, so that a hopeless one ends.
    """

    def __init__(self, batch_size: int, beta_th: float, max_batches: int = 20):
        self.batch_size = batch_size
        self.valid_needed = math.ceil(beta_th * batch_size - 1e-9)  # 0.6 · 5 is 3, whatever floats say
        self.bound = max_batches * batch_size
        self.share_judged = PRIOR_WEIGHT * batch_size
        self.share_valid = (1 + beta_th) / 2 * self.share_judged
        self._groups: dict[Hashable, GroupStatus | None] = {}  # in dispatch order; None while in flight

    # --- what happens

    def dispatch(self, uids: Iterable[Hashable]) -> None:
        """Groups were sent to the rollout, in this order."""
        self._groups.update(dict.fromkeys(uids))

    def judge(self, uid: Hashable, status: GroupStatus) -> None:
        """A dispatched group is finished."""
        self._groups[uid] = status

    def remove(self, uids: Iterable[Hashable]) -> None:
        """Groups are out of the running: used, handed back, or evicted by veRL's own rules."""
        for uid in uids:
            self._groups.pop(uid, None)

    # --- what follows

    @property
    def order(self) -> tuple[Hashable, ...]:
        """All groups dispatched and not yet removed."""
        return tuple(self._groups)

    def is_judged(self, uid: Hashable) -> bool:
        return self._groups.get(uid) is not None

    def select(self) -> StepSelection | None:
        """What the step takes, or None while that depends on groups that are not judged or not dispatched yet."""
        of: dict[GroupStatus, list[Hashable]] = {status: [] for status in GroupStatus}
        valid, zero_variance = of[GroupStatus.VALID], of[GroupStatus.ZERO_VARIANCE]

        def enough() -> bool:
            return len(valid) >= self.valid_needed and len(valid) + len(zero_variance) >= self.batch_size

        uids, judged = list(self._groups), 0
        while not enough() and judged < self.bound:
            if judged == len(uids) or (status := self._groups[uids[judged]]) is None:
                return None
            of[status].append(uids[judged])
            judged += 1
        selected = (valid + zero_variance)[: self.batch_size]
        chosen, prefix, rest = set(selected), uids[:judged], uids[judged:]
        return StepSelection(
            selected=selected,
            unused=[uid for uid in prefix if uid not in chosen],
            rest=rest,
            valid=len(valid),
            judged=judged,
            surplus_valid=sum(self._groups[uid] is GroupStatus.VALID for uid in rest),
            bound_reached=not enough(),
        )

    def share(self) -> float:
        """p̂, the estimated share of valid groups: this step's judged groups and, fading, those of earlier steps."""
        count = Counter(self._groups.values())
        judged = len(self._groups) - count[None]
        return (self.share_valid + count[GroupStatus.VALID]) / (self.share_judged + judged)

    def num_prompts_to_request(self) -> int:
        """How many more prompts to dispatch now.

        With v valid groups and u in flight, v + p̂·u valid ones are expected. Where that falls short of V, as many as
        are predicted to close the gap, at once; and as many as usable groups will be missing from S.
        """
        count = Counter(self._groups.values())
        valid, in_flight = count[GroupStatus.VALID], count[None]
        for_valid = math.ceil((self.valid_needed - valid) / self.share() - 1e-9)
        wanted = max(for_valid, self.batch_size - valid - count[GroupStatus.ZERO_VARIANCE])  # in flight
        return max(0, min(wanted - in_flight, self.bound - len(self._groups)))

    def close(self, step: StepSelection) -> None:
        """Ends the step: its prefix is used up and what it taught about the share is kept; the rest stays."""
        self.share_valid = DECAY * self.share_valid + step.valid
        self.share_judged = DECAY * self.share_judged + step.judged
        self.remove([*step.selected, *step.unused])

    def state(self) -> dict:
        """What outlives the process: the groups in flight, in order, and the share seen so far."""
        return {"order": list(self._groups), "share": (self.share_valid, self.share_judged)}

    def restore(self, state: dict) -> None:
        self.dispatch(state["order"])
        self.share_valid, self.share_judged = state["share"]
