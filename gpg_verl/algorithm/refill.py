"""β_th: which groups enter a step, and how many prompts to ask for. Plain Python: no torch, no veRL, no clock.

A step of S groups needs V = ⌈β_th · S⌉ valid ones. Groups are numbered in the order in which their prompts were
dispatched, and the step ends at its *cut*: the shortest prefix of at least S usable groups of which at least V are
valid, every group in it judged. The step trains on the prefix's valid groups and fills up with zero-variance ones, both
in dispatch order. So a group's place depends on its number and its validity, never on how soon it finished: what is
trained on has the distribution that generating one group after the other would give (design invariant 1). Starting as
soon as V valid groups are there would prefer short responses.

How many prompts are asked for does depend on what has finished so far. It changes how long the step takes and what is
thrown away, not where the cut is.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import Enum

# The two numbers below only trade time against prompts generated in vain; examples/benchmark/refill.py measures both.

# Before any group is judged, as if this share of a batch had been, half way between β_th and all of them valid: a plain
# batch will do until groups say otherwise. The first to finish are few, and short responses are not like the others.
GUESS_WEIGHT = 0.35
# What past steps' groups weigh against this step's. They are all of their steps, not the first to finish, and the
# policy moves slowly; but it moves.
FADE = 0.5


class Verdict(Enum):
    """What a finished group is worth: it has a gradient, or none because its rewards are one, or no rows at all."""

    VALID = "valid"
    FLAT = "flat"
    EMPTY = "empty"


@dataclass(frozen=True)
class Cut:
    """Where a step ends, all in dispatch order.

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
    """The groups of the running step. Told what happens (`dispatch`, `judge`, `forget`), it answers `cut` and `ask`.

    Args:
        batch_size: S, the groups of a step.
        beta_th: β_th in (0, 1].
        max_batches: a step considers at most max_batches · S groups, so that a hopeless one ends.
    """

    def __init__(self, batch_size: int, beta_th: float, max_batches: int = 20):
        self.batch_size = batch_size
        self.valid_needed = math.ceil(beta_th * batch_size - 1e-9)  # 0.6 · 5 is 3, whatever floats say
        self.bound = max_batches * batch_size
        self.share_judged = GUESS_WEIGHT * batch_size
        self.share_valid = (1 + beta_th) / 2 * self.share_judged
        self._order: list[Hashable] = []
        self._verdicts: dict[Hashable, Verdict] = {}
        self._count = dict.fromkeys(Verdict, 0)  # over all judged groups
        self._restart()

    def _restart(self) -> None:
        self._scanned = 0  # length of the prefix looked at so far
        self._seen = dict.fromkeys(Verdict, 0)  # its verdicts

    # --- what happens

    def dispatch(self, uids: Iterable[Hashable]) -> None:
        """Groups were sent to the rollout, in this order."""
        self._order.extend(uids)

    def judge(self, uid: Hashable, verdict: Verdict) -> None:
        """A dispatched group is finished."""
        self._verdicts[uid] = verdict
        self._count[verdict] += 1

    def forget(self, uids: Iterable[Hashable]) -> None:
        """Groups are out of the running: handed back, or evicted by veRL's own rules."""
        gone = set(uids)
        self._order = [uid for uid in self._order if uid not in gone]
        for uid in gone & self._verdicts.keys():
            self._count[self._verdicts.pop(uid)] -= 1
        self._restart()

    # --- what follows

    @property
    def order(self) -> tuple[Hashable, ...]:
        """All groups dispatched and not yet used or forgotten."""
        return tuple(self._order)

    def is_judged(self, uid: Hashable) -> bool:
        return uid in self._verdicts

    def cut(self) -> Cut | None:
        """The end of the step, or None while it depends on groups that are not judged or not dispatched yet."""
        last = min(len(self._order), self.bound)
        while not self._full() and self._scanned < last:
            verdict = self._verdicts.get(self._order[self._scanned])
            if verdict is None:
                return None
            self._seen[verdict] += 1
            self._scanned += 1
        if not self._full() and self._scanned < self.bound:
            return None

        prefix, rest = self._order[: self._scanned], self._order[self._scanned :]
        of = {verdict: [uid for uid in prefix if self._verdicts[uid] is verdict] for verdict in Verdict}
        selected = (of[Verdict.VALID] + of[Verdict.FLAT])[: self.batch_size]
        chosen = set(selected)
        return Cut(
            selected=selected,
            unused=[uid for uid in prefix if uid not in chosen],
            rest=rest,
            valid=self._seen[Verdict.VALID],
            judged=self._scanned,
            surplus_valid=self._count[Verdict.VALID] - self._seen[Verdict.VALID],
            bound_reached=not self._full(),
        )

    def _full(self) -> bool:
        valid, flat = self._seen[Verdict.VALID], self._seen[Verdict.FLAT]
        return valid >= self.valid_needed and valid + flat >= self.batch_size

    def share(self) -> float:
        """p̂, the estimated share of valid groups: this step's judged groups and, fading, those of earlier steps."""
        return (self.share_valid + self._count[Verdict.VALID]) / (self.share_judged + len(self._verdicts))

    def ask(self) -> int:
        """How many more prompts to dispatch now.

        With v valid groups and u in flight, v + p̂·u valid ones are expected. Where that falls short of V, as many as
        are predicted to close the gap, at once; and as many as usable groups will be missing from S.
        """
        valid, usable = self._count[Verdict.VALID], self._count[Verdict.VALID] + self._count[Verdict.FLAT]
        for_valid = math.ceil((self.valid_needed - valid) / self.share() - 1e-9)
        wanted = max(for_valid, self.batch_size - usable)  # in flight
        in_flight = len(self._order) - len(self._verdicts)
        return max(0, min(wanted - in_flight, self.bound - len(self._order)))

    def close(self, cut: Cut) -> None:
        """Ends the step: its prefix is used up and what it taught about the share is kept; the rest stays."""
        self.share_valid = FADE * self.share_valid + cut.valid
        self.share_judged = FADE * self.share_judged + cut.judged
        self.forget([*cut.selected, *cut.unused])

    def state(self) -> dict:
        """What outlives the process: the groups in flight, in order, and the share seen so far."""
        return {"order": self._order, "share": (self.share_valid, self.share_judged)}

    def restore(self, state: dict) -> None:
        self.dispatch(state["order"])
        self.share_valid, self.share_judged = state["share"]
