"""Boxes (LISA): two corners in thousandths of the image; the reward is GIoU + 1.

The prompt asks for `(x1,y1),(x2,y2)`. The same four numbers count in brackets or as a JSON `bbox_2d` too: what is
learned here is where the object is, and the format has a reward of its own.

GIoU = IoU − (|C| − |A ∪ B|) / |C|, with C the smallest box around both (Rezatofighi et al. 2019), in [−1, 1]. `right`
is an IoU of at least one half. This is the IoU of boxes; LISA's published metrics compare masks.
"""

import re

from reward_fns import extract, golds
from reward_fns.verdict import UnparsableGold, Verdict

_NUMBER = r"\s{0,9}([0-9]{1,4}(?:\.[0-9]{1,9})?)\s{0,9}"
_PAIR = rf"[(\[<]{{1,2}}{_NUMBER}[,; ]{_NUMBER}[)\]>]{{1,2}}"
_FOUR = _NUMBER + rf"[, ]{_NUMBER}" * 3
_BOX = re.compile(rf"{_PAIR}\s{{0,9}}[,;-]?\s{{0,9}}(?:to\s{{1,9}})?{_PAIR}|[(\[{{]{_FOUR}[)\]}}]|\A{_FOUR}\Z")
_POINT = re.compile(_PAIR)
Box = tuple[float, float, float, float]


def judge(text: str, gold, settings) -> Verdict:
    target = _gold_box(gold)
    answer = extract.tagged_or_whole(text)
    box = read(answer)
    if box is None:
        return Verdict(False, answer, reward=0.0)
    giou, iou = generalized_iou(box, target)
    return Verdict(iou >= 0.5, answer, reward=giou + 1, box_iou=iou)


def check_gold(gold, settings) -> None:
    _gold_box(gold)


def _gold_box(gold) -> Box:
    found = [box for text in golds.texts(gold) if (box := read(extract.tagged_or_whole(text))) is not None]
    if len(found) != 1:
        raise UnparsableGold(repr(gold))
    return found[0]


def read(text: str) -> Box | None:
    """The box in the text; None for none, for several that differ, and for one without area."""
    found = {tuple(float(n) if "." in n else int(n) for n in match if n) for match in _BOX.findall(text)}
    if len(found) != 1 or _POINT.search(_BOX.sub("", text)):
        return None
    x1, y1, x2, y2 = found.pop()
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def generalized_iou(a: Box, b: Box) -> tuple[float, float]:
    """(GIoU, IoU) of two boxes with an area."""
    overlap = _area((*map(max, a[:2], b[:2]), *map(min, a[2:], b[2:])))
    around = _area((*map(min, a[:2], b[:2]), *map(max, a[2:], b[2:])))
    union = _area(a) + _area(b) - overlap
    iou = overlap / union
    return iou - (around - union) / around, iou


def _area(box: Box) -> float:
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])
