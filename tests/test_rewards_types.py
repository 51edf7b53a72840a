"""Golds, rows and files as veRL, parquet and people bring them: judged, or refused in one line."""

import asyncio
import json
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from conftest import run_python
from test_rewards import ROOT, row

from reward_fns import UnparsableGold, audit, compute_score, sources
from reward_fns.scoring import Settings

GSM8K, MATH = "openai/gsm8k", "lighteval/MATH"


@pytest.mark.parametrize(
    "gold",
    [
        "5", b"5", 5, 5.0, np.int64(5), np.float64(5), np.float32(5), np.str_("5"), np.bytes_(b"5"), np.array(5),
        np.array("5"), np.array(5, dtype=object), Decimal(5), Decimal("5.00"), Fraction(5), Fraction(10, 2), ["5"], [5],
        ("5",), [b"5"], np.array(["5"]), np.array([5]), np.array(["5"], dtype=object), '["5"]', "5\n", " 5 ", [["5"]],
        [None, "5"],
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("source", [GSM8K, MATH, sources.GEOQA_TRAIN, sources.SAT])
def test_golds_of_every_type(source, gold):
    text = "<think>a</think><answer>{}</answer>" if source in (sources.GEOQA_TRAIN, sources.SAT) else "\\boxed{{{}}}"
    for answer, right in (("5", 1), ("6", 0)):
        result = compute_score(source, text.format(answer), gold)
        assert (result["acc"], result["gold_unparsable"]) == (right, 0)


@pytest.mark.parametrize(
    "gold",
    [
        None, [None], [], {}, {"a": "5"}, float("nan"), "nan", float("inf"), Decimal("nan"), np.float64("nan"), "", " ",
        True, b"", [""], object(), [{"a": 5}], np.array([]), np.array(None, dtype=object),
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("source", [GSM8K, MATH, sources.GEOQA_TRAIN, sources.SAT, sources.PETS, sources.LISA])
def test_golds_that_are_none(source, gold):
    for text in ("", "\\boxed{5}", "#### 5", "<answer>5</answer>", "<answer>None</answer>", "<answer>nan</answer>"):
        result = compute_score(source, text, gold)
        assert (result["score"], result["acc"], result["gold_unparsable"]) == (0, 0, 1)
    with pytest.raises(UnparsableGold):
        sources.TASKS[source].check_gold(gold, Settings())


@pytest.mark.parametrize(
    ("gold", "answer"), [(1e-7, "10^{-7}"), (1e22, "10^{22}"), (0.1, "\\frac{1}{10}"), ("1e-07", "0.0000001")]
)
def test_floats_as_golds(gold, answer):
    assert compute_score(MATH, f"\\boxed{{{answer}}}", gold)["acc"] == 1


@pytest.mark.parametrize(
    ("extra_info", "name", "truncated"),
    [
        ({"index": 7, "truncated": True}, "7", 1),
        ('{"index": 7, "truncated": true}', "7", 1),
        (b'{"index": 7}', "7", 0),
        (np.array({"index": 7}, dtype=object), "7", 0),
        (np.array([1, 2]), "", 0),
        ("", "", 0),
        ("a text", "", 0),
        ("[1]", "", 0),
        (None, "", 0),
        (7, "", 0),
        ({"index": np.int64(7)}, "7", 0),
    ],
)
def test_extra_info_of_every_type(extra_info, name, truncated):
    result = compute_score(MATH, "\\boxed{5}", "5", extra_info)
    assert (result["acc"], result["row"], result["truncated"]) == (1, name, truncated)


def test_what_verls_default_scorer_takes():
    more = {"sandbox_fusion_url": None, "concurrent_semaphore": asyncio.Semaphore(1), "memory_limit_mb": 1024}
    assert compute_score(MATH, "\\boxed{5}", "5", {}, **more)["acc"] == 1


@pytest.mark.parametrize("text", [None, b"\\boxed{5}", np.str_("\\boxed{5}")])
def test_texts_of_every_type(text):
    assert compute_score(np.str_(MATH), text, "5")["acc"] == (text is not None)


@pytest.mark.parametrize("source", [["a"], None, 5, {"a": 1}, float("nan")])
def test_data_sources_of_other_types_are_unknown(source):
    with pytest.raises(ValueError, match="is unknown to reward_fns"):
        compute_score(source, "\\boxed{5}", "5")


# ---- audit -----------------------------------------------------------------------------------------------------


def audited(path, capsys) -> tuple[int, list[str]]:
    code = audit.main([path])
    return code, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (json.dumps(row(MATH, "5", "a\u2028b\u0085c"), ensure_ascii=False).encode(), 0, "1 rows, 0 cannot"),
        (b"\xef\xbb\xbf" + json.dumps(row(MATH, "5", 0)).encode(), 0, "1 rows, 0 cannot"),
        (json.dumps(row(MATH, "5", 0)).encode() + b"\r\n\r\n", 0, "1 rows, 0 cannot"),
        (json.dumps({**row(MATH, "5", 0), "prompt": "\u00e9"}, ensure_ascii=False).encode("latin-1"), 2, "not UTF-8"),
        ({**row(MATH, "5", 0), "reward_model": '{"ground_truth": "5"}'}, 2, "row 1 is not an object"),
        ({**row(MATH, "5", 0), "reward_model": None}, 2, "row 1 is not an object"),
        (row([MATH], "5", 0), 1, "is unknown"),
        ({**row(MATH, "", 0), "extra_info": "text"}, 1, "cannot be read"),
        ({**row(MATH, "", 0), "extra_info": {"id": "\ud800"}}, 1, "cannot be read"),
        (row(MATH, {"a": 1}, 0), 1, "cannot be read"),
        (row(MATH, [None], 0), 1, "cannot be read"),
        (b"[" * 100_000, 2, "row 1 is not an object"),
        (b"\xff\xfe\x00", 2, "not UTF-8"),
        (b"", 0, "0 rows"),
        (b"null", 2, "row 1 is not an object"),
    ],
)
def test_files_are_read_or_refused_in_one_line(content, code, said, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_bytes(json.dumps(content).encode() if isinstance(content, dict) else content)
    status, lines = audited(tmp_path / "rows.jsonl", capsys)
    assert status == code
    assert said in "\n".join(lines)
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    ("changed", "code"),
    [({"reward_model": '{"ground_truth": "5"}'}, 2), ({"data_source": [MATH]}, 1), ({"extra_info": "text"}, 0)],
)
def test_parquet_with_columns_of_other_types(changed, code, tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([{**row(MATH, "5", 0), **changed}]), tmp_path / "rows.parquet")
    assert audited(tmp_path / "rows.parquet", capsys)[0] == code


def test_the_command_never_ends_in_a_traceback(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes('{"data_source": "é"}'.encode("latin-1"))
    done = run_python("-m", "reward_fns", "audit", str(tmp_path / "latin.jsonl"), str(tmp_path), cwd=ROOT)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout


GOLDS = ["12:00", "1-\\frac1{\\mathrm e}", "4:30 \\text{ p.m.}", "204_5", "\\{2,1\\}", "\\text{east}", "]0,1[", "8.7e8"]
GOLDS += ["1 \\pm \\sqrt{19}"]


@pytest.mark.parametrize("gold", GOLDS)
def test_what_the_audit_passes_the_run_judges(gold, caplog):
    assert audit.problem(row(MATH, gold, 0)) is None
    assert compute_score(MATH, f"\\boxed{{{gold}}}", gold)["acc"] == 1
    for answer in ("5", "\\sqrt{7}", "\\int_0^1 x", "x+y", "\\text{west}"):
        result = compute_score(MATH, f"\\boxed{{{answer}}}", gold)
        assert (result["acc"], result["gold_unparsable"]) == (0, 0)
    assert not caplog.records


def test_the_audit_says_a_fault_of_many_rows_once(tmp_path, capsys):
    rows = [row("me/unknown", "5", index) for index in range(30)] + [row(MATH, "", 30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    status, lines = audited(tmp_path / "rows.jsonl", capsys)
    assert status == 1
    assert [line for line in lines if "is unknown" in line] == [
        f"{tmp_path / 'rows.jsonl'}: 30 rows: "
        + ", ".join(f"{i} (id {i})" for i in range(10))
        + " and 20 more: data_source='me/unknown' is unknown"
    ]
    assert any("row 30 (id 30): gold answer ''" in line for line in lines)
    assert "31 rows, 31 cannot be scored" in lines[-2]
