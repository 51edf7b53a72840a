"""The rewards as tables: what each kind of answer takes for right, and what gets nothing out of gaming it."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import string
import time
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import run_python
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_fns import (
    UnknownDataSource,
    compute_score,
    expression,
    extract,
    guard,
    number,
    sources,
)
from reward_fns import box as boxes
from reward_fns.cosine import cosine
from reward_fns.format import STYLES
from reward_fns.scoring import Settings

GSM8K, MATH = "openai/gsm8k", "DigitalLearningGmbH/MATH-lighteval"
ROOT = Path(__file__).parents[1]
KEYS = ["score", "acc", "format", "pred", "truncated", "killed", "gold_unparsable", "box_iou", "data_source", "row"]


def acc(source, text, gold, **kwargs):
    return compute_score(source, text, gold, **kwargs)["acc"]


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("18", "so 9 * 2 = 18\n#### 18", 1),
        ("18", "#### 18 eggs.", 1),
        ("18", "#### **18**", 1),
        ("18", "#### $18.00", 1),
        ("18", "####18", 1),
        ("-18", "#### -18", 1),
        ("-18", "#### -$18", 1),
        ("-18", "#### $-18", 1),
        ("-18", "#### −18", 1),
        ("18", "#### -18", 0),
        ("18", "#### +18", 1),
        ("1800", "#### 1,800", 1),
        ("1,800", "#### 1800.0", 1),
        ("1800", "#### €1,800.00.", 1),
        ("1800", "#### 1,80", 0),
        ("50", "#### 50%", 1),
        ("0.75", "#### 3/4", 1),
        ("1.5", "#### 1 1/2 hours", 1),
        ("0.5", "#### .5", 1),
        ("18", "what she wrote ends in #### 18", 1),
        ("Janet sells 16 - 3 - 4 = 9 eggs.\n#### 18", "#### 18", 1),
        ("18", "#### 17\nNo, wait.\n#### 18", 1),
        ("18", "#### 18\nNo, wait.\n#### 17", 0),
        ("18", "The answer is \\boxed{18}.", 1),
        ("18", "The answer is \\boxed{18\\text{ eggs}}.", 1),
        ("18", "\\boxed{\\$18}", 1),
        ("0.5", "\\boxed{\\frac{1}{2}}", 1),
        ("10000", "\\boxed{10{,}000}", 1),
        ("18", "\\boxed{x = 18}", 1),
        ("18", "\\boxed{17}, \\boxed{18}", 0),
        ("18", "18", 0),
        ("18", "A: 18", 0),
        ("18", "#### 18 + 5", 0),
        ("100", "#### 100 - 20 = 80", 0),
        ("18", "#### 1８", 0),
        ("18", "#### 18:30", 0),
        ("18", "#### 18.5.1", 0),
        ("3", "#### 3/0", 0),
        ("18", "#### " + "18" * 5000, 0),
        ("18", "####", 0),
        ("18", "", 0),
    ],
)
def test_gsm8k(gold, text, right):
    assert acc(GSM8K, text, gold) == right


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("18", "She makes $18 every day.", 1),
        ("18", "A: 18", 1),
        ("18", "9 * 2 = <<9*2=18>>18", 1),
        ("18", "17, or 18, or 19", 0),
        ("18", "x18", 0),
        ("8", "1８ 18", 0),
        ("18", "no number", 0),
        ("18", "18\n#### 17", 0),
        ("18", "18 " + "x" * 100_000, 0),
    ],
)
def test_gsm8k_with_the_last_number(gold, text, right):
    assert acc(GSM8K, text, gold, last_number=True) == right


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("5", "so $x = \\boxed{5}$.", 1),
        ("5", "\\boxed{5.0}", 1),
        ("27.0", "\\boxed{27}", 1),
        (27.0, "\\boxed{27}", 1),
        ("5", "\\boxed{6}", 0),
        ("\\frac{1}{2}", "\\boxed{0.5}", 1),
        ("\\frac{1}{2}", "\\boxed{\\dfrac{2}{4}}", 1),
        ("\\frac{1}{3}", "\\boxed{0.33}", 0),
        ("\\frac{1}{3}", "\\boxed{0.333333}", 1),
        ("10{,}000", "\\boxed{10000}", 1),
        ("12\\frac{3}{5}", "\\boxed{\\frac{63}{5}}", 1),
        ("20\\%", "\\boxed{20}", 1),
        ("5", "\\boxed{5\\text{ cm}}", 1),
        ("30^\\circ", "\\boxed{30}", 1),
        ("(3,4)", "\\boxed{(3, 4)}", 1),
        ("(3,4)", "\\boxed{(4,3)}", 0),
        ("[0,1)", "\\boxed{[0,1)}", 1),
        ("[0,1)", "\\boxed{[0,1]}", 0),
        ("1,2,3", "\\boxed{3,2,1}", 1),
        ("\\{1,2\\}", "\\boxed{\\{2,1\\}}", 1),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\boxed{\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}}", 1),
        ("y=2x+1", "\\boxed{y = 1 + 2x}", 1),
        ("x=5", "\\boxed{5}", 1),
        ("\\text{Evelyn}", "\\boxed{Evelyn}", 1),
        ("\\text{even}", "\\boxed{\\text{odd}}", 0),
        ("A", "\\boxed{\\text{(A)}}", 1),
        (["6630.65", "6630"], "\\boxed{6630}", 1),
        (["6630.65", "6630"], "\\boxed{6631}", 0),
        (["4.4e7", "4.4 \\times 10^7"], "\\boxed{4.4 \\times 10^{7}}", 1),
        (["$(6,3),(9,3)$"], "\\boxed{(9,3),(6,3)}", 1),
        ("3\\sqrt{13}", "\\boxed{\\sqrt{117}}", 1),
        # The last box counts; boxes side by side are one list.
        (
            "4",
            "\\boxed{3}. Let me check that again, because I am not at all sure that it is right. It is \\boxed{4}.",
            1,
        ),
        (
            "3",
            "\\boxed{3}. Let me check that again, because I am not at all sure that it is right. It is \\boxed{4}.",
            0,
        ),
        ("4", "\\boxed{3} or \\boxed{4}", 0),
        ("3", "\\boxed{3} or \\boxed{4}", 0),
        ("4", "\\boxed{1}\\boxed{2}\\boxed{3}\\boxed{4}", 0),
        ("4", "\\boxed{1,2,3,4}", 0),
        ("4", "\\boxed{3 \\text{ or } 4}", 0),
        ("3,4", "\\boxed{3} and \\boxed{4}", 1),
        ("4", "\\boxed{\\boxed{4}}", 1),
        ("4", "Put your final answer in \\boxed{answer}.", 0),
        ("4", "\\boxed{}", 0),
        ("4", "\\boxed{4", 0),
        ("4", "The answer is 4, so \\boxed{", 0),
        # Without a box math-verify looks for the answer in the text.
        ("4", "The final answer is $4$.", 1),
        ("4", "The final answer is $5$.", 0),
        ("4", "", 0),
        ("4", "\n \n", 0),
    ],
)
def test_math(gold, text, right):
    assert acc(MATH, text, gold) == right


SPACED = "<think>\n a\n</think>\n<answer>\nb\n</answer>"


@pytest.mark.parametrize(
    ("source", "gold", "text", "right"),
    [
        ("array/SAT", "left", "thinking</think><answer>left</answer>", 1),
        ("array/SAT", "left", "thinking</think> <answer> Left. </answer>", 1),
        ("array/SAT", "left", "left", 1),
        ("array/SAT", "left", "<answer>left or right</answer>", 0),
        ("array/SAT", "left", "<answer>left</answer><answer>right</answer>", 0),
        ("array/SAT", "left", "<answer>right</answer> no </think> <answer>left</answer>", 1),
        ("array/SAT", "3", "<answer>3.0</answer>", 1),
        ("array/SAT", "3", "<answer>2, 3</answer>", 0),
        ("nyu-visionx/CV-Bench", "(B)", "<answer>B</answer>", 1),
        ("nyu-visionx/CV-Bench", "(B)", "<answer>the answer is (B) chair</answer>", 1),
        ("nyu-visionx/CV-Bench", "(D)", "<answer>(A) (B) (C) (D)</answer>", 0),
        ("nyu-visionx/CV-Bench", "D", "<answer>ABCD</answer>", 0),
        ("nyu-visionx/CV-Bench", "(B)", "", 0),
        ("nyu-visionx/CV-Bench", "(B)", "<answer>b</answer>", 0),
        ("nyu-visionx/CV-Bench", "(B)", "<answer>A</answer>", 0),
        ("array/SAT", "left", "<answer>B</answer>", 0),  # a letter where the options are texts
        (sources.FLOWERS, "sweet_pea", "<answer>Sweet Pea</answer>", 1),
        (sources.FLOWERS, "sweet pea", "<answer>a sweet pea</answer>", 1),
        (sources.AIRCRAFT, "Boeing 737-200", "<answer>737-200</answer>", 1),
        (sources.PETS, "american_bulldog", "<answer>American Bulldog</answer>", 1),
        (sources.PETS, "Abyssinian", "<answer>Bengal</answer>", 0),
        (sources.CARS, "Audi TTS Coupe 2012", "<answer>audi tts coupe</answer>", 1),
        (sources.CARS, "Audi TTS Coupe 2012", "<answer>2012</answer>", 0),
        (sources.FLOWERS, "rose", "<answer>tulip</answer>", 0),
        (sources.FLOWERS, "rose", "<answer></answer>", 0),
        (sources.FLOWERS, "rose", "", 0),
        (sources.FLOWERS, "rose", "<answer>r</answer>", 0),
        (sources.FLOWERS, "rose", "<answer>rose, tulip</answer>", 0),
        (sources.FLOWERS, "rose", "<answer>rose or tulip</answer>", 0),
        (sources.FLOWERS, "rose", "<answer>tulip daisy rose lily iris</answer>", 0),
        (sources.GEOQA_TRAIN, "145", "<answer>145°</answer>", 1),
        (sources.GEOQA_TRAIN, "<answer> 3.0 </answer>", "<think>a</think><answer>AB = 3 cm</answer>", 1),
        (sources.GEOQA_TEST, "-2.5", "<answer>-5/2</answer>", 1),
        (sources.GEOQA_TEST, "2.5", "<answer>-2.5</answer>", 0),
        (sources.GEOQA_TRAIN, "145", "145", 0),
        (sources.GEOQA_TRAIN, "145", "<answer>145 or 35</answer>", 0),
        (sources.GEOQA_TRAIN, "145", "<answer>45</answer>", 0),
        (sources.GEOQA_TRAIN, "2\\sqrt{3}", "<answer>\\sqrt{12}</answer>", 1),
        (sources.GEOQA_TRAIN, "2\\sqrt{3}", "<answer>2</answer>", 0),
        (sources.GEOQA_TRAIN, "145", "<answer>145", 0),
    ],
)
def test_tagged_kinds(source, gold, text, right):
    assert acc(source, text, gold) == right


@pytest.mark.parametrize(
    ("text", "reward", "iou"),
    [
        ("(100,100),(300,300)", 2.0, 1.0),
        ("<answer>( 100 , 100 ) , ( 300 , 300 )</answer>", 2.0, 1.0),
        ("(100,100),(200,300)", 1.5, 0.5),
        ("The mug is at (100,100),(300,300).", 2.0, 1.0),
        ("<think>(0,0),(9,9)</think><answer>(100,100),(300,300)</answer>", 2.0, 1.0),
        ("(200,200),(400,400)", 1 + 1 / 7 - 2 / 9, 1 / 7),  # of 9 squares around, 1 is shared and 7 are covered
        ("(800,800),(900,900)", 1 + 0 - 59 / 64, 0.0),  # far off: less than touching, more than no box
        ("(300,300),(500,500)", 0.5, 0.0),  # they touch: union is half of what is around
        ("(0,0),(1000,1000)", 1.04, 0.04),
        ("", 0.0, 0.0),
        ("no box", 0.0, 0.0),
        ("(300,300),(100,100)", 0.0, 0.0),
        ("(100,100),(100,100)", 0.0, 0.0),
        ("(100,100),(300,300) (0,0),(50,50)", 0.0, 0.0),
        ("(99999999,1),(2,3)", 0.0, 0.0),
    ],
)
def test_boxes(text, reward, iou):
    result = compute_score(sources.LISA, text, "(100,100),(300,300)", format=0)
    assert result["score"] == pytest.approx(reward)
    assert result["box_iou"] == pytest.approx(iou)
    assert result["acc"] == (iou >= 0.5)


coordinates = st.tuples(*[st.integers(0, 1000)] * 4).filter(lambda b: b[0] < b[2] and b[1] < b[3])


@settings(deadline=None)
@given(coordinates, coordinates)
def test_generalized_iou_is_symmetric_and_bounded(a, b):
    giou, iou = boxes.generalized_iou(a, b)
    assert (giou, iou) == boxes.generalized_iou(b, a)
    assert -1 < giou <= iou <= 1
    assert (iou == 1) == (a == b)


def test_generalized_iou_is_the_one_of_transformers_on_1000_random_boxes():
    import torch
    from transformers.loss.loss_for_object_detection import box_iou, generalized_box_iou

    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 1001, (2, 2000, 2, 2), generator=generator)
    low, high = corners.amin(2), corners.amax(2)
    solid = (low < high).all(-1).all(0)
    a, b = torch.cat([low, high], -1)[:, solid][:, :1000]
    assert len(a) == 1000
    # As (1, 4) each: of many boxes both functions compare all with all.
    pairs = [(x.double().unsqueeze(0), y.double().unsqueeze(0)) for x, y in zip(a, b, strict=True)]
    theirs = [(generalized_box_iou(x, y).item(), box_iou(x, y)[0].item()) for x, y in pairs]
    ours = [boxes.generalized_iou(tuple(x), tuple(y)) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    exact = {"dtype": torch.float64}
    torch.testing.assert_close(torch.tensor(ours, **exact), torch.tensor(theirs, **exact), rtol=0, atol=1e-12)
    assert sum(iou == 0 for _, iou in ours) > 100  # apart from each other too
    for box, target, (giou, iou) in zip(a.tolist()[:50], b.tolist(), ours, strict=False):
        text, gold = ("({},{}),({},{})".format(*x) for x in (box, target))
        result = compute_score(sources.LISA, f"<think>a</think><answer>{text}</answer>", gold)
        assert (result["score"], result["box_iou"]) == pytest.approx((giou + 1 + 1, iou))


@pytest.mark.parametrize(
    ("style", "text", "shaped"),
    [
        ("think_line", "a\n</think>\nb", True),
        ("think_line", "a</think>\nb", False),
        ("think_line", "a\n</think>\nb\n</think>\nc", False),
        ("think_answer_lines", "<think>\na\n</think>\n<answer>\nb\n</answer>", True),
        ("think_answer_lines", "<think>a</think><answer>b</answer>", False),
        ("think_answer", "<think>a</think> \n <answer>b</answer>", True),
        ("think_answer", "<think>a</think>, <answer>b</answer>", False),
        ("think_answer", "<think>a</think><answer>b</answer><answer>c</answer>", False),
        ("think_answer", "x<think>a</think><answer>b</answer>", False),
        ("think_answer", "<answer>b</answer><think>a</think>", False),
        ("think_answer_opened", "a</think><answer>b</answer>", True),
        ("think_answer_opened", "<think>a</think><answer>b</answer>", False),
        ("think_answer", "", False),
    ],
)
def test_formats(style, text, shaped):
    assert STYLES[style](text) is shaped


@pytest.mark.parametrize(
    ("right", "length", "published", "value"),
    [
        (True, 0, False, 1.0),
        (True, 500, False, 0.75),
        (True, 1000, False, 0.5),
        (True, 2000, False, 0.5),
        (True, 2000, True, 1.0),
        (False, 0, False, 0.0),
        (False, 500, False, -0.25),
        (False, 1000, False, -0.5),
        (False, 5000, False, -0.5),
    ],
)
def test_cosine(right, length, published, value):
    assert cosine(right, length, 1000, published) == pytest.approx(value)


T1_TEXT = "<think>\nadd\n</think>\n\\boxed{4}"


@pytest.mark.parametrize(
    ("source", "text", "gold", "kwargs", "score"),
    [
        # T1: format 1, cosine 2.
        ("knoveleng/open-s1", T1_TEXT, "4", {}, 1 + 2 * (0.5 + 0.25 * (1 + math.cos(math.pi * len(T1_TEXT) / 1000)))),
        ("knoveleng/open-rs", "\\boxed{5}" + " " * 991, "4", {}, -1.0),
        ("knoveleng/open-rs", "\\boxed{5}" + " " * 1991, "4", {"cosine_published": True}, 0.0),
        ("knoveleng/open-rs", "\\boxed{5}" + " " * 3575, "4", {"cosine_max_len": 3584}, -1.0),
        # T2, T3: accuracy; Dr. GRPO: accuracy and format.
        (sources.SIMPLELR, "\\boxed{4}", "4", {}, 1.0),
        (MATH, "<think>\na\n</think>\n<answer>\n\\boxed{4}\n</answer>", "4", {}, 1.0),
        (MATH, "<think>\na\n</think>\n<answer>\n\\boxed{4}\n</answer>", "4", {"format": 1}, 2.0),
        (MATH, "\\boxed{4}", "4", {"format": 1, "format_style": "think_line"}, 1.0),
        (MATH, "\\boxed{4}", "4", {"accuracy": 0.5}, 0.5),
        (MATH, "\\boxed{4}" + " " * 991, "4", {"accuracy": 0, "cosine": 1}, 0.5),
        # T4 to T7: the answer and the format.
        (sources.SAT, "a</think><answer>left</answer>", "left", {}, 2.0),
        (sources.LISA, "<think>a</think><answer>(1,1),(3,3)</answer>", "(1,1),(3,3)", {}, 3.0),
        (sources.PETS, "<think>a</think><answer>pug</answer>", "pug", {}, 2.0),
        (sources.GEOQA_TEST, "<think>a</think><answer>7</answer>", "7", {}, 2.0),
        ("aime_2031", "\\boxed{7}", "7", {}, 1.0),
    ],
)
def test_combinations(source, text, gold, kwargs, score):
    assert compute_score(source, text, gold, **kwargs)["score"] == pytest.approx(score)


def test_every_row_has_the_same_keys_and_plain_values():
    golds = {sources.LISA: "(1,1),(2,2)", sources.FLOWERS: "rose"}
    for source in sources.TASKS:
        for text, gold in (("", golds.get(source, "4")), ("\\boxed{4}", golds.get(source, "4")), ("x", "")):
            result = compute_score(source, text, gold, {"index": f"keys {source}"})
            assert list(result) == KEYS
            assert all(
                type(value) is (str if key in ("pred", "data_source", "row") else float)
                for key, value in result.items()
            )


@pytest.mark.parametrize(("answer", "right"), [("0.01", 1), ("0.02", 1), ("0.03", 0)])
def test_several_golds_as_a_list_or_as_its_json_text(answer, right):
    for gold in (["0.01", "0.02"], '["0.01", "0.02"]'):
        assert compute_score(sources.MINERVA, f"\\boxed{{{answer}}}", gold)["acc"] == right


@pytest.mark.parametrize(
    ("text", "extra_info", "truncated"),
    [
        ("\\boxed{4}", None, 0),
        ("\\boxed{4}", {"truncated": True}, 1),
        ("so \\boxed{4", None, 1),
        ("so \\boxed{4", {"truncated": False}, 0),
        ("<think> a", None, 1),
        ("<think> a </think> <answer> 4", None, 1),
        ("<think> a </think> <answer> 4 </answer>", None, 0),
    ],
)
def test_truncated(text, extra_info, truncated):
    assert compute_score(MATH, text, "4", extra_info)["truncated"] == truncated


@pytest.mark.parametrize(
    ("source", "gold"),
    [
        (GSM8K, ""),
        (GSM8K, "eighteen"),
        (GSM8K, None),
        (MATH, ""),
        (MATH, None),
        (MATH, []),
        (MATH, ["", " "]),
        (MATH, "\\frac{1}{0}"),
        (MATH, "\\frac{1}{"),
        (sources.SAT, ""),
        (sources.LISA, "left"),
        (sources.FLOWERS, "_"),
        (sources.GEOQA_TRAIN, "<answer></answer>"),
    ],
)
def test_an_unparsable_gold_is_never_right_and_reported_once(source, gold, caplog):
    row = {"index": f"{source} {gold}"}
    texts = ("", f"\\boxed{{{gold}}}", f"#### {gold}", f"<answer>{gold}</answer>")
    with caplog.at_level(logging.WARNING, "reward_fns"):
        results = [compute_score(source, text, gold, row) for text in texts for _ in range(2)]
    assert all(r["acc"] == 0 and r["score"] == 0 for r in results)
    assert results[-1]["gold_unparsable"] == 1
    (record,) = caplog.records
    assert row["index"] in record.getMessage()
    assert "audit" in record.getMessage()


def test_an_unknown_data_source_names_the_known_ones_and_the_way_out():
    with pytest.raises(UnknownDataSource) as error:
        compute_score("openai/gsm8l", "#### 1", "1")
    for part in ("openai/gsm8l", "did you mean 'openai/gsm8k'?", MATH, "reward_fns.register", "default_compute_score"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"formt": 1}, "did you mean format?"),
        ({"format": "yes"}, "expected a weight"),
        ({"accuracy": True}, "expected a weight"),
        ({"format_style": "tags"}, "think_answer_lines"),
        ({"last_number": "yes"}, "True and False"),
        ({"verify_timeout": 0}, "above 0"),
        ({"cosine_max_len": -1}, "above 0"),
    ],
)
def test_settings_that_are_wrong(kwargs, message):
    with pytest.raises(ValueError, match="reward_kwargs") as error:
        compute_score(MATH, "\\boxed{4}", "4", **kwargs)
    assert message in str(error.value)


def test_what_verl_passes_beside_the_settings_is_no_setting():
    assert compute_score(MATH, "\\boxed{4}", "4", None, reward_router_address="a", reward_model_tokenizer=object())[
        "acc"
    ]


def test_the_pages_data_source_of_ones_own(monkeypatch):
    monkeypatch.setattr(sources, "TASKS", dict(sources.TASKS))
    page = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(from reward_fns import .*?)```", page, flags=re.DOTALL)
    mine: dict = {}
    exec(program, mine)
    score = mine["compute_score"]
    assert score("me/yes-or-no", "Yes", "yes")["score"] == 1.0
    assert score("me/yes-or-no", "no", "yes")["score"] == 0.0
    assert score("me/yes-or-no", "<think>a</think><answer>no</answer>", "yes")["score"] == 0.5
    assert score("me/yes-or-no", "yes", "", {"id": "mine"})["gold_unparsable"] == 1.0


def test_the_page_names_every_data_source_and_every_setting():
    page = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")
    for name in sources.TASKS:
        if name.rpartition("/")[0] in sources.TASKS:  # a part of a set that is named
            continue
        short = re.sub(r"^(laolao77/ViRFT_CLS_).*|^(numina_|math_dapo|aime|math).*", lambda m: m[1] or m[2], name)
        assert f"`{short}" in page, name
    for field in dataclasses.fields(Settings):
        assert f"`{field.name}`" in page


# ---- the short path against math-verify ------------------------------------------------------------------------

plain_numbers = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.integers(0, 10**9).map(lambda n: f"{n:,}"),
    st.tuples(st.integers(-(10**4), 10**4), st.integers(1, 6)).map(lambda t: f"{t[0] / 10 ** t[1]:.{t[1]}f}"),
    st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(lambda t: f"\\frac{{{t[0]}}}{{{t[1]}}}"),
    st.tuples(st.integers(1, 99), st.integers(1, 99)).map(lambda t: f"-\\dfrac{{{t[0]}}}{{{t[1]}}}"),
    st.tuples(st.integers(0, 99), st.integers(1, 99)).map(lambda t: f"{t[0]}/{t[1]}"),
    st.tuples(st.integers(0, 99), st.integers(1, 99), st.integers(1, 99)).map(
        lambda t: f"{t[0]} \\frac{{{t[1]}}}{{{t[2]}}}"
    ),
    st.sampled_from(
        [
            "x",
            "12\\frac{3}{5}",
            "\\frac{63}{5}",
            "12.6",
            "\\pi",
            "2\\sqrt{3}",
            "(1,2)",
            "\\text{odd}",
            "x=5",
            "1,2",
            "3^2",
        ]
    ),
)


@settings(max_examples=250, deadline=None)
@given(plain_numbers, plain_numbers, st.booleans())
def test_what_the_short_path_decides_math_verify_says_too(gold, answer, itself):
    answer = gold if itself else answer
    decision = expression.short_path(expression.tidy(gold), expression.tidy(answer))
    if decision is not None:
        assert guard.verify((gold,), f"\\boxed{{{answer}}}")[0] is decision


@pytest.mark.parametrize(
    ("gold", "answer"), [("5", "5"), ("1/2", "0.5"), ("2", "3"), ("x+y", "x+y"), ("1,000", "1000")]
)
def test_the_short_path_is_taken(gold, answer):
    assert expression.short_path(gold, answer) is not None


# ---- whatever a model can write --------------------------------------------------------------------------------

# Several of these would hang or take much memory; the bound is short here.
HOSTILE = {
    "tower": "\\boxed{9^{9^{9^{9}}}}",
    "tower in the text": "The answer is 9**9**9**9",
    "factorial": "\\boxed{10000000!}",
    "huge integer": "\\boxed{" + "9" * 4000 + "}",
    "longer than any answer": "\\boxed{" + "9" * 1_000_000 + "}",
    "nested braces": "\\boxed{" + "{" * 1500 + "1" + "}" * 1500 + "}",
    "nested fractions": "\\boxed{" + "\\frac{1}{" * 300 + "2" + "}" * 300 + "}",
    "nested parentheses": "(" * 4000,
    "a megabyte": "so " * 350_000,
    "a megabyte of digits": "1 2 " * 250_000,
    "a megabyte of #": "#" * 1_000_000,
    "thousands of boxes": "\\boxed{1}" * 20_000,
    "thousands of open boxes": "\\boxed{" * 20_000,
    "thousands of tags": "<answer>" * 50_000 + "</answer>" * 50_000,
    "thousands of thoughts": "<think>\n</think>\n" * 30_000,
    "null bytes": "\\boxed{5\0}\0" * 10,
    "lone surrogates": "\\boxed{\ud800} \udfff",
    "right to left": "\\boxed{\u202e5\u202c}",
    "full width": "\\boxed{５}",
    "imports": "\\boxed{__import__('pathlib').Path('PWNED').touch()}",
    "imports in the text": "The answer is: __import__('pathlib').Path('PWNED').touch()",
    "attributes": "\\boxed{().__class__.__base__.__subclasses__()}",
    "latex names": "\\boxed{\\operatorname{open}('PWNED','w')}",
    "write18": "\\boxed{\\write18{touch PWNED}\\input{/etc/passwd}}",
    "spaces": "\\boxed{" + " " * 4000 + "}",
    "dollars": "$" * 4000,
    "brackets": "\\[" * 300,
    "points": "(1,1),(2," * 20_000,
    "numbers without end": "1,234," * 20_000,
    "signs": "-" * 100_000 + "5",
    "slashes": "1/" * 100_000,
    "empty": "",
    "cut": "Therefore \\boxed{\\frac{1}{",
    "only the format": "<think>\n</think>\n<answer>\n</answer>",
    "the prompt again": "Reason step by step and put your final answer within \\boxed{}.",
}
GOLDS = {GSM8K: "5", MATH: "5", sources.SAT: "left", sources.FLOWERS: "rose", sources.LISA: "(1,1),(9,9)"}
GOLDS[sources.GEOQA_TRAIN] = "5"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_survived(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source, gold in GOLDS.items():
        start = time.monotonic()
        result = compute_score(source, HOSTILE[name], gold, verify_timeout=1.0, last_number=True)
        took = time.monotonic() - start
        assert result["acc"] == 0
        assert result["killed"] == 0 or result["score"] == 0
        assert took < 10, "one bound, and the wait for a fresh process"
        json.dumps(result, ensure_ascii=False).encode()
        assert len(result["pred"]) <= 200
    assert not list(tmp_path.iterdir())


pieces = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.text(string.printable, max_size=8),
        st.sampled_from(
            ["\\boxed{", "####", "<answer>", "</answer>", "<think>", "</think>", "\\frac", "\\(", "\\text{"]
        ),
        st.sampled_from([*"}{$-,19./ \n()\\=%²٣AB", "\ud800", "\0"]),
    ),
    max_size=30,
).map("".join)


@settings(max_examples=300, deadline=20_000)
@given(pieces, pieces)
def test_no_extractor_raises_or_lingers(text, gold):
    found = extract.contents(text)
    assert all(piece in text and len(piece) <= extract.LONGEST_ANSWER for piece in found or ())
    extract.tagged(text)
    extract.tagged_or_whole(text)
    extract.looks_cut(text)
    extract.showable(text).encode()
    for read in (number.read, number.last):
        assert isinstance(read(text), Fraction | None)
    boxes.read(text)
    for shaped in STYLES.values():
        assert shaped(text) in (True, False)
    expression.tidy(text)
    expression.short_path(text, gold)
    for source in GOLDS:
        if source != MATH:
            assert list(compute_score(source, text, GOLDS[source])) == KEYS
            if source != sources.SAT:
                assert list(compute_score(source, text, gold, {"index": 0})) == KEYS


@settings(max_examples=60, deadline=None)
@given(pieces)
def test_mathematics_of_any_text(text):
    assert list(compute_score(MATH, text, "5", verify_timeout=2)) == KEYS
    assert list(compute_score(MATH, f"\\boxed{{{text}}}", "5", verify_timeout=2)) == KEYS


# ---- audit -----------------------------------------------------------------------------------------------------


def row(source, gold, index):
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": "?"}],
        "reward_model": {"style": "rule", "ground_truth": gold},
        "extra_info": {"index": index},
    }


def test_audit(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = [row(GSM8K, "5", 0), row(MATH, "\\frac{1}{2}", 1), row(MATH, "\\text{(A)}", 2)]
    bad = [row(GSM8K, "five", 7), row(MATH, "", 8), row("me/unknown", "5", 9)]
    pq.write_table(pa.Table.from_pylist(good), tmp_path / "good.parquet")
    pq.write_table(pa.Table.from_pylist(good + bad), tmp_path / "bad.parquet")
    (tmp_path / "bad.jsonl").write_text("\n".join(json.dumps(r) for r in good + bad))
    (tmp_path / "broken.jsonl").write_text("{")

    done = run_python("-m", "reward_fns", "audit", str(tmp_path / "good.parquet"), cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "3 rows, 0 cannot be scored" in done.stdout
    done = run_python(
        "-m", "reward_fns", "audit", *[str(tmp_path / f"bad.{s}") for s in ("parquet", "jsonl")], cwd=ROOT
    )
    assert done.returncode == 1, done.stdout
    assert done.stdout.count("6 rows, 3 cannot be scored") == 2
    assert "row 3 (id 7): gold answer 'five' cannot be read" in done.stdout
    assert "row 4 (id 8): gold answer '' cannot be read" in done.stdout
    assert "row 5 (id 9): data_source='me/unknown' is unknown" in done.stdout
    done = run_python("-m", "reward_fns", "audit", str(tmp_path / "broken.jsonl"), "missing.parquet", cwd=ROOT)
    assert done.returncode == 2, done.stdout
    assert "row 1" in done.stdout
    assert "no such file" in done.stdout
