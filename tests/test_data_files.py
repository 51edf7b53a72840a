"""Data files as the look before a run reads them: what veRL trains on passes, and the first bad row is named."""

from __future__ import annotations

import json

import datasets
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from gpg_verl.data.source import read_file
from gpg_verl.launch import checks, data_files
from gpg_verl.launch.data_files import Unreadable, read
from gpg_verl.launch.facts import Facts

MESSAGES = [{"role": "user", "content": "What is 1 + 1?"}]
ROW = {
    "data_source": "openai/gsm8k",
    "prompt": MESSAGES,
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 0},
}
LINE = json.dumps(ROW).encode()
LINES, LIST, BOM = b"\n".join([LINE] * 3), json.dumps([ROW] * 3).encode(), b"\xef\xbb\xbf"


@pytest.fixture
def faults_of(tiny_config):
    facts = Facts(tiny_config("reward.custom_reward_function.path=pkg://reward_fns"))
    return lambda file: list(checks.row_faults(facts, file))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.jsonl", LINES),
        ("lines.json", LINES + b"\n"),
        ("list.json", LIST),
        ("pretty.json", json.dumps([ROW] * 3, indent=2).encode()),
        ("list.jsonl", LIST),
        ("blank_first.jsonl", b"\n" + LINES),
        ("blank_first.json", b"\n" + LIST),
        ("bom.jsonl", BOM + LINES),
        ("bom.json", BOM + LIST),
        ("mixed_gold.jsonl", LINES + b"\n" + LINE.replace(b'"2"', b"2")),
        ("content_in_parts.jsonl", LINES + b"\n" + LINE.replace(b'"What is 1 + 1?"', b'[{"type": "text"}]')),
        ("no_extra.jsonl", LINES + b"\n" + LINE.replace(b'{"index": 0}', b"null")),
    ],
)
def test_what_verl_trains_on_is_read(name, content, tmp_path, monkeypatch, capfd, faults_of):
    file = tmp_path / name
    file.write_bytes(content)
    verls = datasets.load_dataset("json", data_files=str(file), cache_dir=str(tmp_path / "verls"))["train"]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    capfd.readouterr()
    found = read(str(file), "prompt")
    assert (found.rows, list(found.features)) == (len(verls), verls.column_names)
    assert found.looked_at == list(range(len(verls)))
    assert set(found.columns["data_source"]) == {"openai/gsm8k"}
    assert faults_of(found) == []
    assert len(list(read_file(file))) == len(verls)  # the data tool reads it too
    assert "".join(capfd.readouterr()) == ""
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.jsonl", LINES + b"\n{nope", "line 4 is not a JSON object"),
        ("broken.json", LIST[:-5], "not a JSON list"),
        ("number.jsonl", LINE + b"\n7", "line 2 is not a JSON object (7)"),
        ("latin.jsonl", LINES + b"\n" + LINE.replace(b"What", b"caf\xe9"), "row 3 is not UTF-8 text"),
        ("empty.jsonl", b"", "holds no rows"),
        ("blank.json", b" \n\n", "holds no rows"),
        ("other.csv", b"a,b", "veRL reads .parquet, .json and .jsonl, not .csv"),
        ("torn.parquet", b"PAR1", "not a readable parquet file"),
    ],
)
def test_what_cannot_be_read_is_named(name, content, message, tmp_path, capfd):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable) as refused:
        read(str(tmp_path / name), "prompt")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "".join(capfd.readouterr()) == ""


WRONG = {
    "prompt": ["a text", None, [], ["a text"], [{"role": "user"}], [{"role": "user", "content": None}], [{}], 5],
    "reward_model": ["2", None, {}, {"style": "rule"}, 2],
    "extra_info": ["a text", 5, [1]],
}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("column", WRONG)
def test_the_first_bad_row_is_named(kind, column, tmp_path, faults_of):
    for number, wrong in enumerate(WRONG[column]):
        file = tmp_path / f"{number}.{kind}"
        rows = [ROW, ROW, {**ROW, column: wrong}, ROW]
        if kind == "parquet":
            try:
                table = pyarrow.Table.from_pylist(rows)
            except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
                table = pyarrow.Table.from_pylist([{**ROW, column: wrong}] * 4)  # such a column holds nothing else
            pyarrow.parquet.write_table(table, file)
        else:
            file.write_text("\n".join(map(json.dumps, rows)))
        found = read(str(file), "prompt")
        if column == "reward_model" and wrong in ({}, {"style": "rule"}) and "ground_truth" in str(found.features):
            assert faults_of(found) == []  # the column has a type with a gold answer, so this row's is null
            continue
        (fault,) = faults_of(found)
        assert f"column {column} holds " in fault
        assert fault.startswith(("row 2: ", "row 0: ") if kind == "parquet" else "row 2: ")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_large_file_is_looked_at_in_stretches(kind, tmp_path, monkeypatch, tiny_config):
    monkeypatch.setattr(data_files, "MOST", 100)
    monkeypatch.setattr(data_files, "BATCH", 10)
    rows = pd.DataFrame([ROW] * 1000)
    file = tmp_path / f"large.{kind}"
    if kind == "parquet":
        rows.to_parquet(file, row_group_size=10)
    else:
        rows.to_json(file, orient="records", lines=True)
    facts = Facts(tiny_config(f"data.train_files={file}"))
    (found,) = facts.splits[0].files
    assert (found.rows, len(found.looked_at)) == (1000, 100)
    assert max(found.looked_at) > 800
    assert found.columns["prompt"] == [MESSAGES] * 100
    assert [m for m in checks.data(facts) if f"large.{kind} was looked at in 100 of 1,000 rows" in m]
