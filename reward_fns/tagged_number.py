"""GEOQA: the value in the answer tags, or in a box, equals the gold one; the gold answer may stand in tags itself."""

from reward_fns import expression, extract, golds
from reward_fns.verdict import Verdict


def judge(text: str, gold, settings) -> Verdict:
    targets = _golds(gold)
    expression.check_gold(targets, settings)
    answer = extract.tagged(text)
    if (boxes := extract.contents(text if answer is None else answer)) is not None:
        answer = ", ".join(boxes)
    if not answer or len(answer) > extract.LONGEST_ANSWER:
        return Verdict(False)
    return Verdict(expression.same(expression.accepted(targets), answer, settings), answer)


def check_gold(gold, settings) -> None:
    expression.check_gold(_golds(gold), settings)


def _golds(gold) -> list[str]:
    return [extract.tagged_or_whole(text) for text in golds.texts(gold)]
