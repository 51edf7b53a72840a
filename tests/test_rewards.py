"""The rewards as tables: what each kind of answer takes for right, and what gets nothing out of gaming it."""

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

from reward_fns import UnknownDataSource, answer, audit, compute_score, extract, gsm8k, sources
from reward_fns import box as boxes
from reward_fns.cosine import cosine
from reward_fns.format import STYLES
from reward_fns.kinds import Answer
from reward_fns.scoring import Settings

GSM8K, MATH = "openai/gsm8k", "DigitalLearningGmbH/MATH-lighteval"
ROOT = Path(__file__).parents[1]
KEYS = ["score", "acc", "format", "pred", "truncated", "killed", "gold_unparsable", "box_iou", "data_source", "row"]


def acc(source, text, gold, **kwargs):
    return compute_score(source, text, gold, **kwargs)["acc"]


def test_what_is_longer_than_any_answer_is_none():
    assert acc(GSM8K, "#### " + "18" * 5000, "18") == 0
    assert acc(GSM8K, "18 " + "x" * 100_000, "18", last_number=True) == 0
    assert acc(MATH, "\\boxed{" + "18" * 5000 + "}", "18") == 0


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
        *((text, 0.0, 0.0) for text in ("", "no box", "(300,300),(100,100)", "(100,100),(100,100)")),
        *((text, 0.0, 0.0) for text in ("(100,100),(300,300) (0,0),(50,50)", "(99999999,1),(2,3)")),
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
            assert {k for k, v in result.items() if type(v) is str} == {"pred", "data_source", "row"}
            assert {type(v) for v in result.values()} == {str, float}


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
        *((GSM8K, gold) for gold in ("", "eighteen", None)),
        *((MATH, gold) for gold in ("", None, [], ["", " "], "\\frac{1}{0}", "\\frac{1}{")),
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
    from_verl = {"reward_router_address": "a", "reward_model_tokenizer": object()}
    assert acc(MATH, "\\boxed{4}", "4", **from_verl) == 1


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


# ---- numbers, exactly ------------------------------------------------------------------------------------------

numerals = st.one_of(
    st.integers(-(10**12), 10**12).map(lambda n: (Fraction(n), str(n))),
    st.integers(0, 10**9).map(lambda n: (Fraction(n), f"{n:,}")),
    st.tuples(st.integers(-(10**4), 10**4), st.integers(1, 6)).map(
        lambda t: (Fraction(t[0], 10 ** t[1]), f"{t[0] / 10 ** t[1]:.{t[1]}f}")
    ),
    st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(lambda t: (Fraction(*t), f"\\frac{{{t[0]}}}{{{t[1]}}}")),
    st.tuples(st.integers(0, 99), st.integers(1, 99)).map(lambda t: (Fraction(*t), f"{t[0]}/{t[1]}")),
    st.tuples(st.integers(0, 99), st.integers(1, 99), st.integers(1, 99)).map(
        lambda t: (t[0] + Fraction(t[1], t[2]), f"{t[0]} \\frac{{{t[1]}}}{{{t[2]}}}")
    ),
    st.tuples(st.integers(1, 99), st.integers(-20, 20)).map(
        lambda t: (t[0] * Fraction(10) ** t[1], f"{t[0]} \\times 10^{{{t[1]}}}")
    ),
)


@settings(max_examples=300, deadline=None)
@given(numerals, numerals)
def test_numbers_are_read_and_compared_exactly(a, b):
    for value, written in (a, b):
        read = answer.read(written)
        assert (read.kind, read.parts[0]) == ("number", value)
        assert answer.same(read, read, Settings())
    same = answer.same(answer.read(a[1]), answer.read(b[1]), Settings())
    assert same == (a[0] == b[0]) or abs(a[0] - b[0]) < Fraction(1, 10**5)


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("1/3", "0.333333", True),
        ("1/3", "0.33333", False),
        ("2/3", "0.666667", True),
        ("2/3", "0.666666", False),
        ("0.123456", "0.1234564", True),
        ("0.123456", "0.1234566", False),
        ("123456.5", "123456.45", True),
        ("5", "5.0000001", False),
        ("\\sqrt{2}", "1.41421", True),
        ("\\sqrt{2}", "1.41422", False),
        ("\\sqrt{2}", "1.4142", False),
    ],
)
def test_a_decimal_is_right_for_what_it_is_the_rounding_of(gold, text, right):
    assert acc(MATH, f"\\boxed{{{text}}}", gold) == right


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
    for read in (gsm8k.stated, gsm8k.last):
        assert isinstance(read(text), Fraction | None)
    assert isinstance(answer.read(text), Answer)
    boxes.read(text)
    for shaped in STYLES.values():
        assert shaped(text) in (True, False)
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


def test_audit(tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = [row(GSM8K, "5", 0), row(MATH, "\\frac{1}{2}", 1), row(MATH, "\\text{(A)}", 2)]
    bad = [row(GSM8K, "five", 7), row(MATH, "", 8), row("me/unknown", "5", 9)]
    pq.write_table(pa.Table.from_pylist(good), tmp_path / "good.parquet")
    pq.write_table(pa.Table.from_pylist(good + bad), tmp_path / "bad.parquet")
    (tmp_path / "bad.jsonl").write_text("\n".join(json.dumps(r) for r in good + bad))
    (tmp_path / "broken.jsonl").write_text("{")

    assert audit.main([tmp_path / "good.parquet"]) == 0
    assert "3 rows, 0 cannot be scored" in capsys.readouterr().out
    assert audit.main([tmp_path / "bad.parquet", tmp_path / "bad.jsonl"]) == 1
    said = capsys.readouterr().out
    assert said.count("6 rows, 3 cannot be scored") == 2
    assert "row 3 (id 7): gold answer 'five' cannot be read" in said
    assert "row 4 (id 8): gold answer '' cannot be read" in said
    assert "row 5 (id 9): data_source='me/unknown' is unknown" in said
    done = run_python("-m", "reward_fns", "audit", str(tmp_path / "broken.jsonl"), "missing.parquet", cwd=ROOT)
    assert done.returncode == 2, done.stdout
    assert "row 1" in done.stdout
    assert "no such file" in done.stdout
