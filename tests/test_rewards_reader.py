"""What the reader makes of notation, prose and hedges: tables of answers that are right and of those that are not paid.

tests/data/rewards_*.jsonl, one gold answer a line: the data source, the settings, how the text is written around an
answer, and the answers that are right and wrong. rewards_kinds.jsonl has what graders most often get wrong.
"""

import itertools
import json
import random
from pathlib import Path

import pytest

from reward_fns import answer, compute_score
from reward_fns.kinds import formula, number
from reward_fns.notation import plain

MATH = "lighteval/MATH"
DATA = Path(__file__).parent / "data"
TABLES = {
    file.stem: [json.loads(line) for line in file.open(encoding="utf-8")] for file in DATA.glob("rewards_*.jsonl")
}


def acc(source, gold, text, **settings) -> float:
    result = compute_score(source, text, gold, **settings)
    assert result["killed"] == 0
    return result["acc"]


def cases(table: str):
    for row in TABLES[table]:
        for right in ("right", "wrong"):
            for text in row.get(right, []):
                written = row["written"].replace("?", text, 1) if row["written"] != "?" else text
                yield row["source"], row["gold"], written, row.get("settings", {}), right == "right"


@pytest.mark.parametrize(("source", "gold", "text", "settings", "right"), [c for t in TABLES for c in cases(t)])
def test_every_row_of_the_tables(source, gold, text, settings, right):
    assert acc(source, gold, text, **settings) == right


@pytest.mark.parametrize("gold", [row["gold"] for row in TABLES["rewards_mathematics"] if "right" in row])
def test_every_gold_is_right_as_it_stands(gold):
    gold = gold[0] if isinstance(gold, list) else gold
    assert acc(MATH, gold, f"\\boxed{{{gold}}}") == 1


# ---- a text is read by exactly one kind ------------------------------------------------------------------------

TEXTS = sorted(
    {
        text
        for row in TABLES["rewards_mathematics"] + TABLES["rewards_kinds"]
        for text in [row["gold"], *row.get("right", []), *row.get("wrong", [])]
        if isinstance(text, str) and len(text) < 400
    }
)


def prepared(text: str) -> str:
    """As the kinds are asked to read it."""
    return number.joined(answer.words.with_digits(answer.prose.value(text)))


def test_a_text_is_read_by_exactly_one_kind():
    texts = {prepared(plain(text)) for text in TEXTS}

    def inner(part: str):  # a part of a text is one, too, whichever kind asks
        parts.add(prepared(part))
        return answer.read_plain(part)

    parts: set[str] = set()
    for module, text in itertools.product(answer.MODULES, texts):
        module.read(text, inner)
    texts = {text for text in texts | parts if text}
    claims = {t: [m.__name__ for m in answer.MODULES if m.read(t, answer.read_plain) is not None] for t in texts}
    assert {t: names for t, names in claims.items() if len(names) > 1} == {}
    assert sum(map(len, claims.values())) > 700, "and not only by none"


def test_the_order_of_the_kinds_makes_no_difference(monkeypatch):
    before = {text: answer.read.__wrapped__(text) for text in TEXTS}
    orders = [answer.MODULES[::-1], *(random.Random(i).sample(answer.MODULES, len(answer.MODULES)) for i in range(3))]
    for order in orders:
        monkeypatch.setattr(answer, "MODULES", tuple(order))
        assert {text: answer.read.__wrapped__(text) for text in TEXTS} == before


def test_each_kind_is_compared_by_one_module_and_read_by_some_text():
    names = [kind for module in answer.MODULES for kind in module.KINDS]
    assert len(names) == len(set(names))
    assert {answer.read(text).kind for text in TEXTS} == {*names, "unknown"}
    assert formula not in answer.MODULES, "it takes what no other kind claims"


# ---- nothing is paid for less ----------------------------------------------------------------------------------


def test_no_constant_answer_earns_more_than_one_class_share():
    golds = [row["gold"] for row in TABLES["rewards_mathematics"] if isinstance(row["gold"], str)]
    golds = list(dict.fromkeys(golds))
    constants = [
        "0",
        "1",
        "x",
        "\\infty",
        "-\\infty",
        "\\emptyset",
        "0/0",
        "5 or 6",
        "1, 2, 3",
        "\\text{all}",
        "x = x",
        "nan",
    ]
    signs = ("or", "and", "=", "\\approx")
    constants += [f"{a} {sign} {b}" for a, b in itertools.combinations(("5", "12", "1"), 2) for sign in signs]
    twins = max(sum(acc(MATH, gold, f"\\boxed{{{other}}}") for gold in golds) for other in ("5", "12", "\\frac{1}{2}"))
    for constant in constants:
        assert sum(acc(MATH, gold, f"\\boxed{{{constant}}}") for gold in golds) <= twins, constant
