"""Data preparation: small files of each data set's shape in, veRL's parquet out."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from preparing import make_model, prepare, rows_of, run, to_json, verl_data
from transformers import AutoTokenizer

from gpg_verl.data import DataError, write
from gpg_verl.data.__main__ import SETS, main
from gpg_verl.data.checks import normalised, question_text
from gpg_verl.data.templates import PLAIN, TEMPLATES
from reward_fns import compute_score

MATH_ROW = {"problem": "What is $1+1$?", "answer": "2", "difficulty": 3.0, "type": "Algebra"}
TEST_ROWS = [{"problem": f"Compute ${i}^2 + x$.", "answer": str(i)} for i in range(5)]
GSM8K_ROWS = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(20)]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


# --- the readers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "gold"),
    [
        ("gsm8k", {"question": "Q", "answer": "4 + 4 = <<4+4=8>>8\n#### 1,008"}, "1008"),
        ("math", {"problem": "Q", "answer": "\\frac{1}{2}", "difficulty": 5.0, "type": "Algebra"}, "\\frac{1}{2}"),
        ("math", {"problem": "Q", "level": "Level 2", "solution": "so $\\boxed{\\sqrt{2}}$."}, "\\sqrt{2}"),
        ("math", {"problem": "Q", "level": "Level ?", "solution": "so $\\boxed 2$."}, "2"),
        ("math_lvl3to5", {"question": "Q", "input": "<q>Q<a>", "gt_answer": "7", "level": 4, "subject": "A"}, "7"),
        ("math_lvl3to5", {"question": "Q", "level": 3, "reward_model": {"ground_truth": "7"}}, "7"),
        ("open-s1", {"problem": "Q", "solution": "", "answer": "3", "source": "x", "messages": []}, "3"),
        ("open-rs", {"problem": "Q", "solution": "", "answer": "3", "level": "Hard"}, "3"),
        ("aime24", {"id": 60, "problem": "Q", "question": "Q", "answer": "204", "solution": "", "url": ""}, "204"),
        ("math500", {"problem": "Q", "solution": "", "answer": "(3, \\frac{\\pi}{2})", "level": 2}, None),
        ("amc23", {"id": 0, "question": "Q", "problem": "Q", "answer": 27.0, "url": ""}, "27"),
        ("amc23", {"question": "Q", "answer": 0.5}, "0.5"),
        ("amc23", {"question": "Q", "answer": 1e-07}, "0.0000001"),
        ("minerva", {"problem": "Q", "answer": ["0.01\n", "0.02\n", "0.02"], "type": "Physics"}, '["0.01", "0.02"]'),
        ("minerva", {"problem": "Q", "solution": "hence \\boxed{7.5e10}"}, "7.5e10"),
        ("olympiadbench", {"question": "Q", "final_answer": ["$69$,$84$"], "unit": None}, "69,84"),
        ("olympiadbench", {"question": "Q", "final_answer": ["4.2"], "unit": "%"}, '["4.2", "4.2\\\\%"]'),
        ("olympiadbench", {"question": "Q", "answer": "$\\frac{1}{3}$"}, "$\\frac{1}{3}$"),
    ],
)
def test_every_set_is_read_as_the_hub_and_as_local_files_have_it(tmp_path, name, row, gold):
    (written,) = prepare(tmp_path, name, [row])
    assert written == {
        "data_source": SETS[name].data_source,
        "prompt": TEMPLATES["boxed"].messages(SETS[name].read(row)),
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": gold or row["answer"]},
        "extra_info": {
            "split": next(iter(SETS[name].splits)),
            "index": 0,
            "question": "Q",
            "level": SETS[name].read(row).level,
        },
    }
    assert written["prompt"][-1]["content"].startswith("Q")


def test_levels(tmp_path):
    rows = [MATH_ROW | {"problem": f"Q{level}", "difficulty": float(level)} for level in range(6)]
    hub = {"problem": "Q?", "level": "Level ?", "solution": "\\boxed{1}"}
    bare = {"problem": "Q of a file without levels", "answer": "1"}
    chosen = prepare(tmp_path, "math_lvl3to5", [*rows, hub, bare])
    assert [row["extra_info"]["level"] for row in chosen] == [3, 4, 5, None]
    assert len(prepare(tmp_path, "math", rows)) == 6
    assert run(tmp_path, "math", rows, "--level", "5", "1") == 0
    written = rows_of(tmp_path / "out" / "math_level15_train.parquet")
    assert [row["extra_info"]["index"] for row in written] == [1, 5]  # the row's number in the source


# --- where rows come from -------------------------------------------------------------------------


def test_every_file_format_gives_the_same_bytes(tmp_path):
    table = datasets.Dataset.from_list(GSM8K_ROWS)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    lines = to_json(tmp_path / "a.jsonl", GSM8K_ROWS)
    (tmp_path / "lines.json").write_bytes(lines.read_bytes())
    folder = tmp_path / "repository"  # as a clone of the hub's: one file per split
    to_json(folder / "train.jsonl", GSM8K_ROWS)
    to_json(folder / "test.jsonl", GSM8K_ROWS[:2])
    sources = [lines, tmp_path / "lines.json", to_json(tmp_path / "a.json", GSM8K_ROWS), tmp_path / "a.parquet"]
    written = set()
    for i, source in enumerate([*sources, arrow, folder]):
        assert run(tmp_path / str(i), "gsm8k train", source) == 0
        (file,) = (tmp_path / str(i) / "out").iterdir()  # nothing half-written stays
        written.add(file.read_bytes())
    assert len(written) == 1


def test_a_hub_repository_with_both_splits(tmp_path):
    to_json(tmp_path / "hub" / "train.jsonl", GSM8K_ROWS[:3])
    to_json(tmp_path / "hub" / "test.jsonl", GSM8K_ROWS[3:4])
    assert run(tmp_path, "gsm8k", tmp_path / "hub") == 0
    files = {split: tmp_path / "out" / f"gsm8k_{split}.parquet" for split in ("train", "test")}
    assert {split: len(rows_of(file)) for split, file in files.items()} == {"train": 3, "test": 1}


def test_a_hub_repository_of_which_one_file_is_read(tmp_path):
    row = {"question": "Q", "input": "<Q>", "gt_answer": "1", "answer": "one", "level": 3}
    for folder, count in {"simplelr_qwen_level3to5": 2, "simplelr_abel_level3to5": 3}.items():
        (tmp_path / "hub" / folder).mkdir(parents=True)
        datasets.Dataset.from_list([row] * count).to_parquet(tmp_path / "hub" / folder / "train.parquet")
    rows = prepare(tmp_path, "math_lvl3to5", tmp_path / "hub")
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["1", "1"]


def test_a_folder_of_several_kinds_is_one_message(tmp_path, capsys):
    to_json(tmp_path / "mixed" / "train.jsonl", GSM8K_ROWS)
    (tmp_path / "mixed" / "test.parquet").write_bytes(b"none")
    assert run(tmp_path, "gsm8k", tmp_path / "mixed") == 1
    error = capsys.readouterr().err
    assert "In it are test.parquet, train.jsonl" in error
    assert "give --source FILE" in error
    assert error.count("\n") == 1


# --- the checks -----------------------------------------------------------------------------------


def test_a_row_count_that_is_not_the_known_one(tmp_path, capsys):
    rows, file = [{"question": "Q", "answer": 1.0}] * 39, tmp_path / "out" / "amc23_test.parquet"
    assert run(tmp_path, "amc23", rows, counted=True) == 1
    assert "amc23, test: 39 rows, known are 40" in capsys.readouterr().err
    assert not file.parent.exists()
    assert run(tmp_path, "amc23", rows, "--limit", "5", counted=True) == 0
    assert len(rows_of(file)) == 5
    assert run(tmp_path, "amc23", rows) == 0
    assert len(rows_of(file)) == 39


def test_a_planted_evaluation_question_is_found_and_left_out(tmp_path, capsys):
    prepare(tmp_path, "math500", TEST_ROWS)
    planted = MATH_ROW | {"problem": "compute \\[3^{2}+x\\]"}
    rows = prepare(tmp_path, "math", [MATH_ROW, planted, MATH_ROW | {"problem": "Compute $3^2 - x$."}])
    out = capsys.readouterr().out
    assert "math train: 1 question also in the evaluation data (math500_test.parquet)" in out
    assert "1 row failed a check (row 1 is in math500_test.parquet): left out" in out
    assert [row["extra_info"]["index"] for row in rows] == [0, 2]


def test_leaks_against_named_files_and_strictly(tmp_path, capsys):
    raw = to_json(tmp_path / "evaluation.jsonl", TEST_ROWS)  # not prepared: as downloaded
    rows = [MATH_ROW, MATH_ROW | {"problem": "Compute 4^2+x"}]
    assert run(tmp_path, "math", rows, "--against", str(raw), "--strict") == 1
    assert "row 1 is in evaluation.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, "math", rows) == 0
    assert "compared with no evaluation data, as none is in the folder" in capsys.readouterr().out
    assert run(tmp_path, "math500", TEST_ROWS) == 1  # made after the training data, it is compared too
    assert "1 question of this set in math_train.parquet" in capsys.readouterr().err
    assert not (tmp_path / "out" / "math500_test.parquet").exists()


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


@pytest.mark.parametrize("golds", ["2", ["\\frac{1}{2}", "0.5"], "f(x)=-1,f(x)=x+1", "\\text{Tuesday}"])
def test_golds_are_read_as_the_rewards_read_them(tmp_path, golds):
    _, row = prepare(tmp_path, "math", [MATH_ROW, MATH_ROW | {"answer": golds}])
    for gold in golds if isinstance(golds, list) else [golds]:
        truth = row["reward_model"]["ground_truth"]
        assert compute_score(row["data_source"], f"\\boxed{{{gold}}}", truth)["acc"] == 1
        assert compute_score(row["data_source"], "\\boxed{17}", truth)["acc"] == 0


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        *[("math", {"answer": empty}, "has no gold answer") for empty in ("", "  ", None, [], float("nan"))],
        ("math", {"answer": "{"}, "gold answer '{' cannot be read"),
        *[
            ("gsm8k", {"answer": answer}, f"cannot be read: its answer is {answer!r}, without the ####")
            for answer in (5, "5", 5.0)
        ],
    ],
)
def test_a_row_that_fails_a_check_is_left_out_of_training_data_alone(tmp_path, capsys, name, change, why):
    rows = [MATH_ROW, MATH_ROW | change] if name == "math" else [GSM8K_ROWS[0], GSM8K_ROWS[1] | change, *GSM8K_ROWS[2:]]
    assert len(prepare(tmp_path, name, rows)) == len(rows) - 1
    assert f"(row 1 {why}" in capsys.readouterr().out
    evaluation = "math500" if name == "math" else "gsm8k test"  # another number of questions
    assert run(tmp_path / "other", evaluation, rows) == 1
    assert f"row 1 {why}" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 9, 10, 20])
def test_rows_that_are_all_unlike_the_set_are_another_set(tmp_path, capsys, count):
    rows = [{"text": "something else"}] * count + GSM8K_ROWS[: count > 9]
    assert run(tmp_path, "gsm8k train", rows) == 1
    assert "row 0: no field answer; it has text. Is this another data set?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_questions_that_stand_twice_are_counted(tmp_path, capsys):
    assert len(prepare(tmp_path, "gsm8k", [*GSM8K_ROWS, GSM8K_ROWS[3]])) == 21
    assert "1 question stood before in this set; they stay" in capsys.readouterr().out


# --- prompts, through veRL's own data set ---------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def through_verl(file: Path, tokenizer, tmp_path: Path, **options) -> list[str]:
    """The text of each prompt as veRL's data set and agent loop make it from a file."""
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    data = verl_data([file], tokenizer, tmp_path, **options)
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
def test_templates_through_verl(tmp_path, model_folder, template, system, user):
    file = tmp_path / "my template.txt"
    file.write_text("Be {brief}.\nBe right.\n---\nQ: {question}\nA:\n")
    prepare(tmp_path, "math", [MATH_ROW], "--template", str(file) if template == "file" else template)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert through_verl(tmp_path / "out" / "math_train.parquet", tokenizer, tmp_path) == [chat(system, user)]


def test_verl_takes_several_sets_together(tmp_path, model_folder):
    """As in an evaluation, data.val_files=[aime24, ...]: of one gold and of several, with levels and without."""
    prepare(tmp_path, "minerva", [{"problem": "Q", "answer": ["1", "2"]}])
    prepare(tmp_path, "aime24", [{"problem": "Q", "answer": "1"}])
    prepare(tmp_path, "math500", [{"problem": "Q", "answer": "1", "level": 3}])
    data = verl_data(sorted((tmp_path / "out").iterdir()), AutoTokenizer.from_pretrained(model_folder), tmp_path)
    assert [row["reward_model"]["ground_truth"] for row in data] == ["1", "1", '["1", "2"]']


def test_the_datas_own_text_reaches_the_model_without_a_chat_template(tmp_path, model_folder, capsys):
    """With `+prompt=plain` the prompt is the text, whole and alone."""
    from gpg_verl.launch.check import compose

    own = "<|im_start|>user\n{ready} made {% if %}<|im_end|>\n<|im_start|>assistant\n"
    rows = [MATH_ROW | {"input": own}, MATH_ROW | {"problem": "bare"}]
    prepare(tmp_path, "math_lvl3to5", rows, "--template", "own")
    assert "+prompt=plain" in capsys.readouterr().out
    assert compose(["+prompt=plain"]).actor_rollout_ref.model.custom_chat_template == PLAIN
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = PLAIN  # as veRL's HFModelConfig does with the setting
    file = tmp_path / "out" / "math_lvl3to5_train.parquet"
    assert through_verl(file, tokenizer, tmp_path) == [own, "bare"]


def test_lengths_are_verls(tmp_path, model_folder, capsys):
    rows = [MATH_ROW | {"problem": "x" * length} for length in (10, 12, 11)]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    limit = len(tokenizer(chat(None, TEMPLATES["boxed"].user.replace("{question}", "x" * 11)))["input_ids"])
    prepare(tmp_path, "math", rows)
    options = {"filter_overlong_prompts": True, "filter_overlong_prompts_workers": 1, "max_prompt_length": limit}
    kept = verl_data([tmp_path / "out" / "math_train.parquet"], tokenizer, tmp_path, **options)
    capsys.readouterr()
    limits = ["--tokenizer", str(model_folder), "--max-prompt-length", str(limit)]
    assert len(prepare(tmp_path, "math", rows, *limits)) == len(kept) == 2
    out = capsys.readouterr().out
    assert f"longest prompt {limit + 1} tokens of {limit} allowed" in out
    assert f"(row 1 has {limit + 1} tokens): left out" in out
    assert run(tmp_path / "other", "math500", rows, *limits) == 1
    assert "raise the limit" in capsys.readouterr().err


# --- writing --------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (row,) = prepare(tmp_path, "math", [MATH_ROW])
    file = tmp_path / "out" / "math_train.parquet"
    before = file.read_bytes()

    def rows():
        yield from [row] * 2 * write.ROWS_PER_GROUP
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"No space left on device.*--out DIR"):
        write.write(rows(), file, write.TEXT_SCHEMA)
    assert list(file.parent.iterdir()) == [file]
    assert file.read_bytes() == before


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
    ("name", "options", "message"),
    [
        ("math", "--source no/such.jsonl", "--source no/such.jsonl: no such file or folder"),
        ("math", "--source {}/bad.jsonl", r"bad.jsonl, line 2: not JSON"),
        ("math", "--source {}/bad.parquet", "bad.parquet: not a readable .parquet file"),
        ("math", "--source {}/text.txt", "read are .jsonl, .json, .parquet, .arrow, not .txt"),
        ("math", "--source {}/other.jsonl", "math train, row 0: no field problem or question; it has text, label"),
        ("math", "--source {}/list.jsonl", "list.jsonl, row 0: '7', expected a JSON object with the row's fields"),
        ("amc23", "--source no-such/data-set", "no-such/data-set, split test: cannot be loaded … give --source FILE"),
        ("math", "--template boxd", "--template boxd: neither a file nor one of think-answer"),
        ("math", "--template {}/text.txt", "text.txt: the user's message has no {question}"),
        ("gsm8k", "", "--split test or --split train"),
        ("math", "--split test", "math has no split test; it has train"),
        ("math", "--against {}/other.jsonl", "other.jsonl: no questions found to compare with"),
        ("math", "--level 1", "none of the rows is of --level 1"),
        ("math", "--tokenizer no/such --max-prompt-length 9", "--tokenizer no/such: cannot be loaded"),
    ],
)
def test_errors_say_what_and_the_way_out(tmp_path, capsys, name, options, message):
    (tmp_path / "bad.jsonl").write_text(json.dumps(MATH_ROW) + "\noops\n")
    (tmp_path / "bad.parquet").write_text("oops")
    (tmp_path / "text.txt").write_text("oops")
    (tmp_path / "list.jsonl").write_text("7\n")
    to_json(tmp_path / "other.jsonl", [{"text": "Q", "label": 1}])
    source = "" if "--source" in options else f"--source {to_json(tmp_path / 'rows.jsonl', [MATH_ROW])} "
    words = f"{name} --allow-count --out {tmp_path}/out {source}{options.replace('{}', str(tmp_path))}".split()
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert all(part in error for part in message.split(" … ")), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nosuch --out x", "invalid choice: 'nosuch'"),
        ("math", "--out is missing"),
        ("math --out x --limit 0", "--limit is 0; allowed is 1 or more"),
        ("gsm8k --out x --level 3", "--level is for math, not for gsm8k"),
        ("math --out x --max-prompt-length 9", "belong together"),
        ("amc23 --out x --against y", "--against is for training data"),
        ("math --out x --images .", "--images and --max-pixels are for data sets with images, and math has none"),
        ("sat --out x --images no/such", "--images no/such: no such folder"),
        ("sat --out x --max-pixels 100", "--max-pixels is 100; allowed is 3136 or more"),
    ],
)
def test_wrong_options(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(arguments.split())
    assert message in capsys.readouterr().err
