"""What every kind of answer returns and raises."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """A judged answer.

    right: whether the answer counts as correct.
    pred: the answer as extracted, "" if there is none.
    reward: the accuracy reward, where it is more than right or wrong (box: GIoU + 1, in [0, 2]); None: 1 or 0.
    box_iou: intersection over union of the boxes, in [0, 1]; 0 for all other kinds.
    """

    right: bool
    pred: str = ""
    reward: float | None = None
    box_iou: float = 0.0


class UnparsableGold(ValueError):
    """The gold answer cannot be read, so no answer can be right; the message holds the gold answer."""


class Killed(Exception):
    """A verification was stopped: `reason` is `time`, `memory` or `crash`."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason
