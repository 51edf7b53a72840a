"""Data preparation: small files of each data set's shape in, veRL's parquet out."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from gpg_verl.data import DataError, write
from gpg_verl.data.__main__ import SETS, main
from gpg_verl.data.checks import normalised, question_text
from gpg_verl.data.templates import PLAIN, TEMPLATES

MATH_ROW = {"problem": "What is $1+1$?", "answer": "2", "difficulty": 3.0, "type": "Algebra"}


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_jsonl(file: Path, rows: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def prepare(tmp_path: Path, name: str, rows: list[dict], *options: str) -> list[dict]:
    """The rows that `python -m gpg_verl.data NAME` writes from these."""
    out = tmp_path / "out"
    source = write_jsonl(tmp_path / f"{name}.jsonl", rows)
    split = options[options.index("--split") + 1] if "--split" in options else next(iter(SETS[name].splits))
    assert main([name, "--out", str(out), "--source", str(source), "--allow-count", *options]) == 0
    return pq.read_table(out / f"{name}_{split}.parquet").to_pylist()


# --- the readers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "gold"),
    [
        ("gsm8k", {"question": "Q", "answer": "4 + 4 = <<4+4=8>>8\n#### 1,008"}, "1008"),
        ("math", {"problem": "Q", "answer": "\\frac{1}{2}", "difficulty": 5.0, "type": "Algebra"}, "\\frac{1}{2}"),
        ("math", {"problem": "Q", "level": "Level 2", "solution": "so $\\boxed{\\sqrt{2}}$."}, "\\sqrt{2}"),
        ("math", {"problem": "Q", "level": "Level ?", "solution": "so $\\boxed 2$."}, "2"),
        ("math_lvl3to5", {"question": "Q", "input": "<q>Q<a>", "gt_answer": "7", "level": 4, "subject": "A"}, "7"),
        (
            "math_lvl3to5",
            {"question": "Q", "level": 3, "reward_model": {"style": "rule", "ground_truth": "7"}},
            "7",
        ),
        ("open-s1", {"problem": "Q", "solution": "", "answer": "3", "source": "x", "messages": []}, "3"),
        ("open-rs", {"problem": "Q", "solution": "", "answer": "3", "level": "Hard"}, "3"),
        ("aime24", {"id": 60, "problem": "Q", "question": "Q", "answer": "204", "solution": "", "url": ""}, "204"),
        ("math500", {"problem": "Q", "solution": "", "answer": "(3, \\frac{\\pi}{2})", "level": 2}, None),
        ("amc23", {"id": 0, "question": "Q", "problem": "Q", "answer": 27.0, "url": ""}, "27"),
        ("amc23", {"question": "Q", "answer": 0.5}, "0.5"),
        ("minerva", {"problem": "Q", "answer": ["0.01\n", "0.02\n", "0.02"], "type": "Physics"}, '["0.01", "0.02"]'),
        ("minerva", {"problem": "Q", "solution": "hence \\boxed{7.5e10}"}, "7.5e10"),
        ("olympiadbench", {"question": "Q", "final_answer": ["$69$,$84$"], "unit": None}, "69,84"),
        ("olympiadbench", {"question": "Q", "final_answer": ["4.2"], "unit": "%"}, '["4.2", "4.2\\\\%"]'),
        ("olympiadbench", {"question": "Q", "answer": "$\\frac{1}{3}$"}, "$\\frac{1}{3}$"),
    ],
)
def test_every_set_is_read_as_the_hub_and_as_local_files_have_it(tmp_path, name, row, gold):
    split = next(iter(SETS[name].splits))
    (written,) = prepare(tmp_path, name, [row], "--split", split)
    assert written == {
        "data_source": SETS[name].data_source,
        "prompt": TEMPLATES["boxed"].messages(SETS[name].read(row)),
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": gold or row["answer"]},
        "extra_info": {"split": split, "index": 0, "question": "Q", "level": SETS[name].read(row).level},
    }
    assert written["prompt"][-1]["content"].startswith("Q")


def test_levels(tmp_path):
    rows = [MATH_ROW | {"problem": f"Q{level}", "difficulty": float(level)} for level in range(6)]
    hub = {"problem": "Q?", "level": "Level ?", "solution": "\\boxed{1}"}
    bare = {"problem": "Q of a file without levels", "answer": "1"}
    chosen = prepare(tmp_path, "math_lvl3to5", [*rows, hub, bare])
    assert [row["extra_info"]["level"] for row in chosen] == [3, 4, 5, None]
    assert main(["math", "--out", str(tmp_path), "--source", str(tmp_path / "math_lvl3to5.jsonl"), "--level", "1"]) == 1
    assert len(prepare(tmp_path, "math", rows)) == 6
    source = ["--source", str(tmp_path / "math.jsonl"), "--allow-count"]
    assert main(["math", "--out", str(tmp_path), *source, "--level", "5", "1"]) == 0
    written = pq.read_table(tmp_path / "math_level15_train.parquet").to_pylist()
    assert [row["extra_info"]["index"] for row in written] == [1, 5]  # the row's number in the source


# --- where rows come from -------------------------------------------------------------------------


def test_every_file_format_gives_the_same_bytes(tmp_path):
    rows = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(20)]
    table = datasets.Dataset.from_list(rows)
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_jsonl(tmp_path / "lines.json", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    folder = tmp_path / "repository"  # as a clone of the hub's: one file per split
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "test.jsonl", rows[:2])
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    written = []
    for i, source in enumerate(["a.jsonl", "lines.json", "a.json", "a.parquet", arrow, folder]):
        out = tmp_path / str(i)
        arguments = ["gsm8k", "--split", "train", "--out", str(out), "--allow-count"]
        assert main([*arguments, "--source", str(tmp_path / source)]) == 0
        written.append((out / "gsm8k_train.parquet").read_bytes())
        assert [file.name for file in out.iterdir()] == ["gsm8k_train.parquet"]  # nothing half-written stays
    assert len(set(written)) == 1


def test_a_hub_repository_with_both_splits(tmp_path):
    row = {"question": "Q", "answer": "#### 1"}
    write_jsonl(tmp_path / "hub" / "train.jsonl", [row] * 3)
    write_jsonl(tmp_path / "hub" / "test.jsonl", [{"question": "Another", "answer": "#### 1"}])
    assert main(["gsm8k", "--out", str(tmp_path), "--source", str(tmp_path / "hub"), "--allow-count"]) == 0
    rows = {split: pq.read_metadata(tmp_path / f"gsm8k_{split}.parquet").num_rows for split in ("train", "test")}
    assert rows == {"train": 3, "test": 1}


def test_a_hub_repository_of_which_one_file_is_read(tmp_path):
    row = {"question": "Q", "input": "<Q>", "gt_answer": "1", "answer": "one", "level": 3}
    for folder, count in {"simplelr_qwen_level3to5": 2, "simplelr_abel_level3to5": 3}.items():
        (tmp_path / "hub" / folder).mkdir(parents=True)
        datasets.Dataset.from_list([row] * count).to_parquet(tmp_path / "hub" / folder / "train.parquet")
    assert main(["math_lvl3to5", "--out", str(tmp_path), "--source", str(tmp_path / "hub"), "--allow-count"]) == 0
    rows = pq.read_table(tmp_path / "math_lvl3to5_train.parquet").to_pylist()
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["1", "1"]


def test_a_hub_that_cannot_be_reached_is_one_message(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert main(["amc23", "--out", str(tmp_path / "out"), "--source", "no-such/data-set"]) == 1
    error = capsys.readouterr().err
    assert "no-such/data-set, split test: cannot be loaded" in error
    assert "--source FILE" in error
    assert not (tmp_path / "out").exists()


# --- the checks -----------------------------------------------------------------------------------


def test_a_row_count_that_is_not_the_known_one(tmp_path, capsys):
    source = write_jsonl(tmp_path / "a.jsonl", [{"question": "Q", "answer": 1.0}] * 39)
    arguments = ["amc23", "--out", str(tmp_path / "out"), "--source", str(source)]
    assert main(arguments) == 1
    assert "amc23, test: 39 rows, known are 40" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--limit", "5"]) == 0
    assert pq.read_metadata(tmp_path / "out" / "amc23_test.parquet").num_rows == 5
    assert main([*arguments, "--allow-count"]) == 0
    assert pq.read_metadata(tmp_path / "out" / "amc23_test.parquet").num_rows == 39


TEST_ROWS = [{"problem": f"Compute ${i}^2 + x$.", "answer": str(i)} for i in range(5)]


def test_a_planted_evaluation_question_is_found_and_left_out(tmp_path, capsys):
    prepare(tmp_path, "math500", TEST_ROWS)
    planted = MATH_ROW | {"problem": "compute \\[3^{2}+x\\]"}
    rows = prepare(tmp_path, "math", [MATH_ROW, planted, MATH_ROW | {"problem": "Compute $3^2 - x$."}])
    out = capsys.readouterr().out
    assert "math train: 1 question also in the evaluation data (math500_test.parquet)" in out
    assert "1 row failed a check (row 1 is in math500_test.parquet): left out" in out
    assert [row["extra_info"]["index"] for row in rows] == [0, 2]


def test_leaks_against_named_files_and_strictly(tmp_path, capsys):
    raw = write_jsonl(tmp_path / "evaluation.jsonl", TEST_ROWS)  # not prepared: as downloaded
    source = write_jsonl(tmp_path / "train.jsonl", [MATH_ROW, MATH_ROW | {"problem": "Compute 4^2+x"}])
    arguments = ["math", "--out", str(tmp_path / "out"), "--source", str(source), "--allow-count"]
    assert main([*arguments, "--against", str(raw), "--strict"]) == 1
    assert "row 1 is in evaluation.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(arguments) == 0
    assert "compared with no evaluation data, as none is in the folder" in capsys.readouterr().out


def test_an_evaluation_set_made_after_the_training_data_is_compared_too(tmp_path, capsys):
    prepare(tmp_path, "math", [MATH_ROW, MATH_ROW | {"problem": "Compute 4^2+x"}])
    source = write_jsonl(tmp_path / "test.jsonl", TEST_ROWS)
    out = tmp_path / "out"
    assert main(["math500", "--out", str(out), "--source", str(source), "--allow-count"]) == 1
    assert "1 question of this set in math_train.parquet" in capsys.readouterr().err
    assert not (out / "math500_test.parquet").exists()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Find $a^{3}-15 a^{2} \\quad \\text { and } b$.", "find $a^3 - 15a^2 \\text{and} b$", True),
        ("$\\dfrac{1}{2}$, ok?", "\\(\\frac12\\) ok", True),
        ("Ｆｉｎｄ $x_1$", "find x1", True),
        ("Find $x + 1$", "Find $x - 1$", False),
        ("Find $x^2$", "Find $x2$", False),
    ],
)
def test_normalised(one, other, same):
    assert (normalised(one) == normalised(other)) is same


def test_question_text_of_anyones_rows():
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    assert question_text({"prompt": prompt, "extra_info": {"question": "raw"}}) == "raw"
    assert question_text({"prompt": prompt, "extra_info": None}) == "Q"
    assert question_text({"text": "no question"}) is None


@pytest.mark.parametrize(
    ("golds", "readable"),
    [
        ("2", True),
        (["\\frac{1}{2}", "0.5"], True),
        ("f(x)=-1,f(x)=x+1", True),
        ("\\text{Tuesday}", True),
        ("{", False),
    ],
)
def test_golds_are_read_as_the_rewards_read_them(tmp_path, capsys, golds, readable):
    from reward_fns import compute_score

    rows = prepare(tmp_path, "math", [MATH_ROW, MATH_ROW | {"answer": golds}])
    if not readable:
        assert "(row 1 gold answer '{' cannot be read): left out" in capsys.readouterr().out
        assert len(rows) == 1
        return
    for gold in golds if isinstance(golds, list) else [golds]:
        truth = rows[1]["reward_model"]["ground_truth"]
        assert compute_score(rows[1]["data_source"], f"\\boxed{{{gold}}}", truth)["acc"] == 1
        assert compute_score(rows[1]["data_source"], "\\boxed{17}", truth)["acc"] == 0


@pytest.mark.parametrize("empty", ["", "  ", None, []])
def test_rows_without_gold(tmp_path, capsys, empty):
    rows = [MATH_ROW, MATH_ROW | {"answer": empty}]
    assert len(prepare(tmp_path, "math", rows)) == 1
    assert "(row 1 has no gold answer): left out" in capsys.readouterr().out
    source = write_jsonl(tmp_path / "test.jsonl", rows)
    assert main(["math500", "--out", str(tmp_path / "o"), "--source", str(source), "--allow-count"]) == 1
    assert "row 1 has no gold answer" in capsys.readouterr().err  # evaluation: another number of questions


GSM8K_ROWS = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(20)]


@pytest.mark.parametrize("answer", [5, "5", 5.0])
def test_one_row_that_cannot_be_read_is_left_out(tmp_path, capsys, answer):
    rows = [GSM8K_ROWS[0], GSM8K_ROWS[1] | {"answer": answer}, *GSM8K_ROWS[2:]]
    assert len(prepare(tmp_path, "gsm8k", rows, "--split", "train")) == 19
    assert f"(row 1 cannot be read: its answer is {answer!r}, without the ####" in capsys.readouterr().out
    source = write_jsonl(tmp_path / "test.jsonl", rows)
    arguments = ["gsm8k", "--split", "test", "--out", str(tmp_path / "o"), "--source", str(source), "--allow-count"]
    assert main(arguments) == 1
    assert "row 1 cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 9, 10, 20])
def test_rows_that_are_all_unlike_the_set_are_another_set(tmp_path, capsys, count):
    source = write_jsonl(tmp_path / "train.jsonl", [{"text": "something else"}] * count + GSM8K_ROWS[: count > 9])
    arguments = ["gsm8k", "--split", "train", "--out", str(tmp_path), "--source", str(source), "--allow-count"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "row 0: no field answer; it has text. Is this another data set?" in error
    assert not list(tmp_path.glob("*.parquet"))


def test_questions_that_stand_twice_are_counted(tmp_path, capsys):
    assert len(prepare(tmp_path, "gsm8k", [*GSM8K_ROWS, GSM8K_ROWS[3]], "--split", "train")) == 21
    assert "1 question stood before in this set; they stay" in capsys.readouterr().out


def test_a_folder_of_several_kinds_is_one_message(tmp_path, capsys):
    folder = tmp_path / "mixed"
    write_jsonl(folder / "train.jsonl", GSM8K_ROWS)
    (folder / "test.parquet").write_bytes(b"none")
    assert main(["gsm8k", "--out", str(tmp_path), "--source", str(folder), "--allow-count"]) == 1
    error = capsys.readouterr().err
    assert "In it are test.parquet, train.jsonl" in error
    assert "give --source FILE" in error
    assert error.count("\n") == 1


# --- prompts, through veRL's own data set ---------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A byte-level tokenizer with Qwen's chat format, as small as they get."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template="{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(folder)
    return folder


def through_verl(file: Path, tokenizer, tmp_path: Path, max_prompt_length: int = 4096) -> list[str]:
    """The text of each prompt as veRL's data set and agent loop make it from a file."""
    from verl.utils.dataset.rl_dataset import RLHFDataset
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    config = OmegaConf.create(
        {
            "cache_dir": str(tmp_path / "cache"),
            "max_prompt_length": max_prompt_length,
            "filter_overlong_prompts": True,
            "filter_overlong_prompts_workers": 1,
        }
    )
    data = RLHFDataset(str(file), tokenizer, config)
    builder = create_continuous_token_builder(tokenizer, hf_model_type="qwen2")
    return [tokenizer.decode(builder.build_initial_tokens(data[i]["raw_prompt"])) for i in range(len(data))]


def chat(system: str | None, user: str) -> str:
    messages = [("system", system), ("user", user)] if system else [("user", user)]
    turns = (f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "system", "user"),
    [
        ("boxed", None, "What is $1+1$?\n\nReason step by step and put the final result in \\boxed{}."),
        ("think", TEMPLATES["think"].system, "What is $1+1$?"),
        ("think-answer", TEMPLATES["think-answer"].system, "What is $1+1$?"),
        ("file", "Be {brief}.\nBe right.", "Q: What is $1+1$?\nA:"),
    ],
)
def test_templates_through_verl(tmp_path, tokenizer_folder, template, system, user):
    from transformers import AutoTokenizer

    file = tmp_path / "my template.txt"
    file.write_text("Be {brief}.\nBe right.\n---\nQ: {question}\nA:\n")
    prepare(tmp_path, "math", [MATH_ROW], "--template", str(file) if template == "file" else template)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert through_verl(tmp_path / "out" / "math_train.parquet", tokenizer, tmp_path) == [chat(system, user)]


def test_verl_takes_several_sets_together(tmp_path, tokenizer_folder):
    """As in an evaluation, data.val_files=[aime24, ...]: of one gold and of several, with levels and without."""
    from transformers import AutoTokenizer
    from verl.utils.dataset.rl_dataset import RLHFDataset

    prepare(tmp_path, "minerva", [{"problem": "Q", "answer": ["1", "2"]}])
    prepare(tmp_path, "aime24", [{"problem": "Q", "answer": "1"}])
    prepare(tmp_path, "math500", [{"problem": "Q", "answer": "1", "level": 3}])
    files = [str(file) for file in sorted((tmp_path / "out").iterdir())]
    config = OmegaConf.create({"cache_dir": str(tmp_path / "cache"), "filter_overlong_prompts": False})
    data = RLHFDataset(files, AutoTokenizer.from_pretrained(tokenizer_folder), config)
    assert [row["reward_model"]["ground_truth"] for row in data] == ["1", "1", '["1", "2"]']


def test_the_datas_own_text_reaches_the_model_without_a_chat_template(tmp_path, tokenizer_folder, capsys):
    """With `+prompt=plain` the prompt is the text, whole and alone."""
    from transformers import AutoTokenizer

    from gpg_verl.launch.check import compose

    own = "<|im_start|>user\n{ready} made {% if %}<|im_end|>\n<|im_start|>assistant\n"
    rows = [MATH_ROW | {"input": own}, MATH_ROW | {"problem": "bare"}]
    prepare(tmp_path, "math_lvl3to5", rows, "--template", "own")
    assert "+prompt=plain" in capsys.readouterr().out
    config = compose(["+prompt=plain"])
    assert config.actor_rollout_ref.model.custom_chat_template == PLAIN
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = PLAIN  # as veRL's HFModelConfig does with the setting
    file = tmp_path / "out" / "math_lvl3to5_train.parquet"
    assert through_verl(file, tokenizer, tmp_path) == [own, "bare"]


def test_lengths_are_verls(tmp_path, tokenizer_folder, capsys):
    from transformers import AutoTokenizer

    rows = [MATH_ROW | {"problem": "x" * length} for length in (10, 12, 11)]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    limit = len(tokenizer(chat(None, TEMPLATES["boxed"].user.replace("{question}", "x" * 11)))["input_ids"])
    prepare(tmp_path, "math", rows)
    kept = through_verl(tmp_path / "out" / "math_train.parquet", tokenizer, tmp_path, max_prompt_length=limit)
    capsys.readouterr()
    limits = ["--tokenizer", str(tokenizer_folder), "--max-prompt-length", str(limit)]
    ours = prepare(tmp_path, "math", rows, *limits)
    out = capsys.readouterr().out
    assert f"longest prompt {limit + 1} tokens of {limit} allowed" in out
    assert f"(row 1 has {limit + 1} tokens): left out" in out
    assert len(ours) == len(kept) == 2
    source = write_jsonl(tmp_path / "test.jsonl", rows)
    arguments = ["math500", "--out", str(tmp_path / "o"), "--source", str(source), "--allow-count"]
    assert main([*arguments, *limits]) == 1
    assert "raise the limit" in capsys.readouterr().err


# --- writing --------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path):
    out = tmp_path / "out"
    prepare(tmp_path, "math", [MATH_ROW])
    before = (out / "math_train.parquet").read_bytes()

    def rows():
        yield from [row] * 2 * write.ROWS_PER_GROUP
        raise OSError(28, "No space left on device")

    (row,) = pq.read_table(out / "math_train.parquet").to_pylist()
    with pytest.raises(DataError, match=r"No space left on device.*--out DIR"):
        write.write(rows(), out / "math_train.parquet", write.TEXT_SCHEMA)
    assert [file.name for file in out.iterdir()] == ["math_train.parquet"]
    assert (out / "math_train.parquet").read_bytes() == before


# --- the command line -----------------------------------------------------------------------------


def test_list(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name, entry in SETS.items():
        lines = [line for line in out.splitlines() if line.strip().startswith(f"{name} ")]
        for split, line in zip(entry.splits, lines, strict=True):
            assert line.split()[1] == split
            assert entry.source_of(split) in line
            assert entry.licence in line
            assert ("from local files" in line) == bool(entry.splits[split].not_on_hub)
    assert "7,500 or 7,474" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["math", "--source", "no/such.jsonl"], "--source no/such.jsonl: no such file or folder"),
        (["math", "--source", "{bad_json}"], r"bad.jsonl, line 2: not JSON"),
        (["math", "--source", "{bad_parquet}"], "bad.parquet: not a readable .parquet file"),
        (["math", "--source", "{text}"], "read are .jsonl, .json, .parquet, .arrow, not .txt"),
        (["math", "--source", "{other}"], "math train, row 0: no field problem or question; it has text, label"),
        (
            ["math", "--source", "{rows}", "--template", "boxd"],
            "--template boxd: neither a file nor one of think-answer",
        ),
        (["math", "--source", "{rows}", "--template", "{text}"], "text.txt: the user's message has no {question}"),
        (["gsm8k", "--source", "{rows}"], "--split test or --split train"),
        (["math", "--source", "{rows}", "--split", "test"], "math has no split test; it has train"),
        (["math", "--source", "{rows}", "--against", "{other}"], "other.jsonl: no questions found to compare with"),
        (["math", "--source", "{rows}", "--level", "1", "--allow-count"], "none of the rows is of --level 1"),
        (
            ["math", "--source", "{rows}", "--allow-count", "--tokenizer", "no/such", "--max-prompt-length", "9"],
            "--tokenizer no/such: cannot be loaded",
        ),
    ],
)
def test_errors_say_what_and_the_way_out(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "bad.jsonl").write_text(json.dumps(MATH_ROW) + "\noops\n")
    (tmp_path / "bad.parquet").write_text("oops")
    (tmp_path / "text.txt").write_text("oops")
    places = {"bad_json": "bad.jsonl", "bad_parquet": "bad.parquet", "text": "text.txt"}
    places |= {"other": write_jsonl(tmp_path / "other.jsonl", [{"text": "Q", "label": 1}])}
    places |= {"rows": write_jsonl(tmp_path / "rows.jsonl", [MATH_ROW])}
    filled = [a.format(**{k: tmp_path / v for k, v in places.items()}) if "{" in a else a for a in arguments]
    if "other.jsonl" in message:
        filled.append("--allow-count")
    assert main([*filled, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch", "--out", "x"], "invalid choice: 'nosuch'"),
        (["math"], "--out is missing"),
        (["math", "--out", "x", "--limit", "0"], "--limit is 0; allowed is 1 or more"),
        (["gsm8k", "--out", "x", "--level", "3"], "--level is for math, not for gsm8k"),
        (["math", "--out", "x", "--max-prompt-length", "9"], "belong together"),
        (["amc23", "--out", "x", "--against", "y"], "--against is for training data"),
    ],
)
def test_wrong_options(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
