"""The recipes in examples/: what each would launch, without launching it (DRY_RUN=1). `make smoke` runs them."""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import smoke
import tiny
from conftest import run_bash

from gpg_verl.launch.check import compose
from gpg_verl.launch.preflight import look, validate
from gpg_verl.report.paper import TABLES, find_row

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
FILES = [file for kind in ("", "text/", "vision/") for file in sorted(EXAMPLES.glob(f"{kind}*.sh"))]
SCRIPTS = [file for file in FILES if "\nlaunch " in file.read_text()]
T3 = ("gpg", "gpg_std", "gpg_alpha", "gpg_alpha_beta", "grpo", "dr_grpo")
T6 = ("flowers", "pets", "aircraft", "cars")
RUNS = {  # name of the run, and so of its folder: the script with its row
    "gpg_rs1": "text/t1.sh gpg_rs1",
    "gpg_rs3": "text/t1.sh gpg_rs3",
    "gpg_7b": "text/t2.sh gpg_7b",
    **{f"t3_{row}": f"text/t3.sh {row}" for row in T3},
    **{f"gsm8k_{row}": f"text/gsm8k.sh {row}" for row in ("0.5b", "1.5b")},
    **{f"{table}_{row}": f"vision/{table}.sh {row}" for table in ("t4", "t5", "t7") for row in ("gpg", "grpo")},
    **{f"t6_{row}_{name}": f"vision/t6.sh {row} {name}" for row in ("gpg", "grpo") for name in T6},
}
VISION = [name for name, script in RUNS.items() if script.startswith("vision/")]


def run(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """A run of RUNS, or eval.sh."""
    script, *row = RUNS.get(name, "eval.sh").split()
    return run_bash(f"examples/{script}", *row, *arguments, **variables)


@functools.cache  # most tests look at the same commands
def dry(script: str, *arguments: str, **variables: str) -> list[list[str]]:
    """The overrides of the training and of the evaluation."""
    done = run(script, *arguments, DRY_RUN="1", **variables)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[3:] for line in lines if line.startswith("python -m verl.trainer.main_ppo ")]


def as_dict(overrides: list[str]) -> dict[str, str]:
    return dict(override.split("=", 1) for override in overrides)


def without_run(overrides: list[str], script: str) -> dict[str, str]:
    return {key: value.replace(f"/{script}-seed1", "/RUN") for key, value in as_dict(overrides).items()}


def usage(file: Path) -> list[str]:
    """What a recipe says it can be called with."""
    done = run_bash(str(file), "--help")
    assert done.returncode == 0
    first, *calls = done.stdout.splitlines()
    assert first.startswith(f"usage: bash {file.relative_to(ROOT)} ROW")
    return [call.strip() for call in calls]


def test_there_is_a_recipe_for_every_run():
    assert sorted(call for file in SCRIPTS for call in usage(file)) == sorted(
        f"bash examples/{script}" for script in RUNS.values()
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["t1.sh"], "t1: which row?"),
        (["t3.sh", "gpg_beta"], "t3: there is no row gpg_beta"),
        (["t3.sh", "gpg grpo"], "t3: there is no row gpg grpo"),
        (["gsm8k.sh", "trainer.save_freq=10"], "gsm8k: there is no row trainer.save_freq=10"),
        (["t6.sh"], "t6: which row?"),
        (["t6.sh", "gpg"], "t6: which set?"),
        (["t6.sh", "grpo", "roses"], "t6: there is no set roses"),
    ],
)
def test_a_row_that_is_none_ends_with_those_that_there_are(words, message):
    (file,) = (file for file in SCRIPTS if file.name == words[0])
    done = run_bash(str(file), *words[1:], RUN="runs/never", DRY_RUN="1")
    assert done.returncode == 2
    first, _, *calls = done.stdout.splitlines()
    assert first == message
    assert [call.strip() for call in calls] == usage(file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_syntax_and_no_path_of_a_machine(file):
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0
    assert not re.search(r"(?<![\w}])/(work|home|root|mnt|data\d*)/", file.read_text())


@pytest.mark.parametrize("smoke", ["0", "1"], ids=["full", "smoke"])
@pytest.mark.parametrize("script", RUNS)
def test_training_and_evaluation_pass_the_check(script, smoke):
    import verl  # noqa: F401

    training, evaluation = dry(script, SMOKE=smoke)
    for overrides in (training, evaluation):
        config = compose(overrides)
        if "algorithm.adv_estimator=gpg" not in overrides:
            validate(config)
        else:
            findings = look(config, overrides)
            assert findings.contradictions == []
            assert findings.settled.notices == []  # on-policy, entropy computed, no row kept for nothing
    trained = as_dict(training)
    assert trained["actor_rollout_ref.actor.calculate_entropy"] == "True"
    assert trained["actor_rollout_ref.actor.ppo_mini_batch_size"] == trained["data.train_batch_size"]
    assert ("+preset=cpu" in training) == ("+preset=cpu" in evaluation) == (smoke == "1")


@pytest.mark.parametrize("script", RUNS)
def test_a_smoke_run_has_the_recipes_own_groups(script):
    full, smoke = (as_dict(dry(script, SMOKE=smoke)[0]) for smoke in "01")
    added = {key for key in smoke if key not in full}
    assert set(full) <= set(smoke)
    assert {key.rsplit(".", 1)[-1] for key in added} == {
        "+preset",
        "max_num_seqs",
        "update_weights_bucket_megabytes",
        "kv_cache_memory_bytes",
    }


@pytest.mark.parametrize("script", RUNS)
def test_a_recipe_says_which_row_it_is(script):
    file, *row = RUNS[script].split()
    done = run_bash("-c", '. "$0" "$@" >/dev/null; claim', f"examples/{file}", *row, DRY_RUN="1", EVAL="0")
    claim = json.loads(done.stdout)
    if "table" in claim:
        assert find_row(claim["table"], claim["row"]) == claim["row"]
    else:
        assert script.startswith("gsm8k")


ACTOR = "actor_rollout_ref.actor"
REWARD = "+reward.custom_reward_function.reward_kwargs"


def gpg(f_norm: str, alpha: str, beta_th: str) -> dict[str, str]:
    own = {"f_norm": f_norm, "alpha": alpha, "beta_th": beta_th}
    return {"algorithm.adv_estimator": "gpg", **{f"+algorithm.gpg.{key}": value for key, value in own.items()}}


def grpo(by_std: str, **of_actor: str) -> dict[str, str]:
    own = {"algorithm.adv_estimator": "grpo", "algorithm.norm_adv_by_std_in_grpo": by_std}
    return own | {f"{ACTOR}.{key.replace('__', '.')}": value for key, value in of_actor.items()}


OWN = {  # what rows name; all else they have in common with the first row of their table
    "t3_gpg": gpg("1", "none", "0"),
    "t3_gpg_std": gpg("std", "none", "0"),
    "t3_gpg_alpha": gpg("1", "sample", "0"),
    "t3_gpg_alpha_beta": gpg("1", "sample", "0.6"),
    "t3_grpo": grpo("True", loss_agg_mode="seq-mean-token-mean"),
    "t3_dr_grpo": grpo(
        "False",
        loss_agg_mode="seq-mean-token-sum-norm",
        loss_scale_factor="1024",
        optim__lr="3e-6",
        optim__lr_scheduler_type="cosine",
    )
    | {f"{REWARD}.format": "1", f"{REWARD}.format_style": "think_line"},
    **dict.fromkeys((name for name in VISION if "_gpg" in name), gpg("1", "sample", "0.4")),
    **dict.fromkeys(
        (name for name in VISION if "_grpo" in name),
        grpo("True", use_kl_loss="True", kl_loss_coef="0.04", kl_loss_type="low_var_kl"),
    ),
}


@pytest.mark.parametrize("script", OWN)
def test_rows_of_a_table_differ_in_what_they_name_and_in_nothing_else(script):
    first = "t3_gpg" if script.startswith("t3") else script.replace("_grpo", "_gpg")
    training, evaluation = (without_run(overrides, first) for overrides in dry(first))
    shared = {key: value for key, value in training.items() if not key.startswith(("algorithm.", "+algorithm."))}
    own_training, own_evaluation = (without_run(overrides, script) for overrides in dry(script))
    assert own_training == shared | OWN[script]
    assert own_evaluation == evaluation


T4_TO_T7 = {
    # table: model, training data, evaluation data, prompts a step, response length, epochs
    "t4": ("Qwen/Qwen2-VL-2B", "choice/sat", ["choice/cv_bench_test"], 8, 700, 2),
    "t5": ("Qwen/Qwen2-VL-2B-Instruct", "box/lisa", ["box/lisa_val", "box/lisa_test"], 16, 256, 6),
    **{
        f"t6_{name}": ("Qwen/Qwen2-VL-2B-Instruct", f"class/{name}", [f"class/{name}_test"], 16, 256, epochs)
        for name, epochs in zip(T6, (8, 24, 8, 8), strict=True)
    },
    "t7": ("Qwen/Qwen2.5-VL-3B-Instruct", "number/geoqa", ["number/geoqa_test"], 16, 256, 1),
}


@pytest.mark.parametrize("table", T4_TO_T7)
def test_settings_of_a_vision_table_are_the_papers(table):
    model, trained, evaluated, prompts, response, epochs = T4_TO_T7[table]
    table, *name = table.split("_")
    training, evaluation = map(as_dict, dry("_".join([table, "gpg", *name])))
    expected = {
        "actor_rollout_ref.model.path": model,
        "data.train_files": f"data/vision/{trained}_train.parquet",
        "data.train_batch_size": str(prompts),
        "data.max_prompt_length": "1024",
        "data.max_response_length": str(response),
        "actor_rollout_ref.rollout.n": "8",
        "actor_rollout_ref.rollout.temperature": "1.0",
        f"{ACTOR}.optim.lr": "1e-6",
        "actor_rollout_ref.rollout.load_format": "auto",
        f"{ACTOR}.loss_agg_mode": "seq-mean-token-mean",
        "trainer.total_epochs": str(epochs),
    }
    assert {key: training.get(key) for key in expected} == expected
    assert evaluation["data.val_files"] == f"[{','.join(f'data/vision/{file}.parquet' for file in evaluated)}]"
    assert evaluation["actor_rollout_ref.rollout.val_kwargs.do_sample"] == "False"
    assert evaluation["actor_rollout_ref.rollout.load_format"] == "auto"
    plain = [overrides.get("+prompt") for overrides in (training, evaluation)]
    assert plain == (["plain"] * 2 if table == "t4" else [None] * 2)  # T4's is a base model, its prompt a whole one


@pytest.mark.parametrize("script", VISION)
def test_boxes_are_made_masks_of_in_the_evaluation(script):
    masks = [line for line in run(script, DRY_RUN="1").stdout.splitlines() if "gpg_verl.report.masks" in line]
    of_run = f"runs/vision/{script}-seed1/eval --model facebook/sam-vit-huge"
    files = "data/vision/box/lisa_val.parquet data/vision/box/lisa_test.parquet"
    command = f"python -m gpg_verl.report.masks {of_run} --data {files}"
    assert masks == ([command] if script.startswith("t5") else [])


@pytest.mark.parametrize(
    "recipe", ["gpg_rs3", "gpg_7b", "t3_dr_grpo", "t4_gpg", "t5_grpo", "t6_gpg_flowers", "t7_grpo", "gsm8k_1.5b"]
)
def test_a_model_is_evaluated_as_the_tables_recipes_do_it(recipe):
    table = Path(RUNS[recipe].split()[0]).stem
    expected = as_dict(dry(recipe)[1])
    (own,) = map(as_dict, dry("eval", table, "me/model", **({"SETS": "flowers"} if table == "t6" else {})))
    differ = {key for key in expected | own if expected.get(key) != own.get(key)}
    run_folder = {"trainer.default_local_dir", "trainer.validation_data_dir", "hydra.run.dir"}
    assert differ == {"actor_rollout_ref.model.path", *run_folder}
    assert own["actor_rollout_ref.model.path"] == "me/model"
    assert own["trainer.validation_data_dir"] == f"runs/eval/{table}-model/validation"


def test_rs1_and_rs3_differ_in_their_data():
    one, three = (without_run(dry(script)[0], script) for script in ("gpg_rs1", "gpg_rs3"))
    assert {key for key in one | three if one.get(key) != three.get(key)} == {"data.train_files"}


def test_variables_and_overrides_reach_the_command():
    training, evaluation = dry("gpg_rs1", "trainer.save_freq=7", GPUS="4", SEED="3", K="16")
    assert training[-1] == "trainer.save_freq=7"
    assert "trainer.n_gpus_per_node=4" in training
    assert "trainer.n_gpus_per_node=4" in evaluation
    assert "trainer.default_local_dir=runs/text/gpg_rs1-seed3/checkpoints" in training
    assert "actor_rollout_ref.rollout.val_kwargs.n=16" in evaluation
    assert len(dry("gpg_rs1", EVAL="0")) == 1


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "message"),
    [
        ("gpg_rs1", [], {"GPUS": "0"}, "GPUS=0: expected a whole number of 1 or more"),
        ("t3_grpo", [], {"GPUS": "0"}, "GPUS=0: expected a whole number of 1 or more"),
        ("gpg_7b", [], {"PROMPTS": "-3"}, "PROMPTS=-3: expected a whole number"),
        ("gpg_7b", [], {"OFFLOAD": "yes"}, "OFFLOAD=yes: allowed are True False"),
        ("gsm8k_0.5b", [], {"MODEL": "./no-such-model"}, "MODEL=./no-such-model: no such folder"),
        ("gsm8k_0.5b", [], {"MODEL": "README.md"}, "MODEL=README.md: it has no config.json"),
        ("gsm8k_0.5b", [], {"MODEL": "nobody/none", "HF_HUB_OFFLINE": "1"}, "MODEL=nobody/none: expected a folder"),
        ("eval", [], {}, "which model?"),
        ("eval", ["./no-such-model"], {}, "MODEL=./no-such-model: no such folder"),
        ("eval", ["nobody/none"], {"K": "4", "TEMPERATURE": "0"}, "greedy answers are all the same"),
        ("eval", ["nobody/none"], {"TEMPERATURE": "warm"}, "TEMPERATURE=warm: expected a number"),
        ("t4_gpg", [], {"PROMPTS": "some"}, "PROMPTS=some: expected a whole number"),
        ("t5_grpo", [], {"KL": "little"}, "KL=little: expected a number"),
        ("t7_gpg", [], {"MODEL": "./no-such-model"}, "MODEL=./no-such-model: no such folder"),
        ("eval", ["t4"], {}, "which model? bash examples/eval.sh t4 MODEL"),
        ("eval", ["t4", "./no-such-model"], {}, "MODEL=./no-such-model: no such folder"),
    ],
)
def test_a_wrong_variable_ends_in_one_message(script, arguments, variables, message):
    done = run(script, *arguments, RUN="runs/never", **variables)
    assert done.returncode == 1
    assert message in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert not (ROOT / "runs/never").exists()


@pytest.mark.parametrize(
    ("script", "variables", "messages"),
    [
        (
            "t3_gpg_alpha_beta",
            {"BETA_TH": "2"},
            [
                "error   algorithm.gpg.beta_th=2: a share from 0 (off) to 1",
                "t3_gpg_alpha_beta: the settings contradict each other; nothing was started",
            ],
        ),
        ("t5_gpg", {"SAM": "README.md"}, ["SAM=README.md: it has no config.json; expected a folder"]),
    ],
)
def test_what_is_wrong_beside_the_model_ends_before_anything_is_made(tmp_path, script, variables, messages):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    folders = {"MODEL": str(tmp_path), "RUN": f"{tmp_path}/run", "DATA_DIR": f"{tmp_path}/data"}
    done = run(script, **folders, **variables)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.startswith(message) for line, message in zip(lines, messages, strict=True)] == [True] * len(messages)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("smoke", ["0", "1"])
def test_a_run_in_miniature_leaves_a_mark_for_the_report(tmp_path, smoke):
    code = 'set -euo pipefail; . examples/lib.sh; NNODES=1; verl "$0" 2 a=b'
    result = run_bash("-c", code, str(tmp_path), SMOKE=smoke, PY="true")  # a Python that does nothing
    assert result.returncode == 0, result.stdout
    assert (tmp_path / "smoke").exists() is (smoke == "1")


def test_a_smoke_models_tokenizer_is_one_that_verl_takes():
    """Its agent loop builds this at the first prompt of a model with Qwen's marks."""
    from verl.utils.tokenizer.continuous_token import QwenContinuousTokenBuilder

    for _, words in smoke.MODELS.values():
        tokenizer = tiny.vision_tokenizer(words)
        assert tokenizer.decode(QwenContinuousTokenBuilder(tokenizer)._newline_id) == "\n"
        assert all(len(tokenizer.encode(word, add_special_tokens=False)) == 1 for word in words)


def library(folder: Path, script: str) -> subprocess.CompletedProcess:
    """A script that uses lib.sh, with raw data in the folder."""
    begin = "set -euo pipefail; NAME=test; . examples/lib.sh; "
    return run_bash("-c", begin + script, SOURCES=f"{folder}/raw", DATA=f"{folder}/data")


def test_a_smoke_runs_raw_data_is_what_the_data_tool_reads(tmp_path):
    """The smallest of each layout: rows with lettered options, with a class name, and LISA's folder with polygons."""
    smoke.make_images(tmp_path / "raw")
    sets = 'SETS="cv_bench pets lisa:val" TEMPLATE=box; prepare_evaluation; prepare lisa train box'
    done = library(tmp_path, f"SMOKE=1; {sets}")  # takes any number of rows
    assert done.returncode == 0, done.stdout
    written = {file.stem: pq.read_table(file).to_pylist() for file in (tmp_path / "data").iterdir()}
    assert {name: len(rows) for name, rows in written.items()} == {
        "cv_bench_test": 16,
        "pets_test": 4,
        "lisa_val": 4,
        "lisa_train": 32,
    }
    assert {row["data_source"] for row in written["cv_bench_test"]} == {
        column.source for column in TABLES["T4"].columns.values()
    }
    assert written["lisa_val"][0]["reward_model"]["ground_truth"] == smoke.box_text(smoke.BOXES["left"])


def test_raw_data_in_a_folder_takes_the_hubs_place(tmp_path):
    """A real evaluation set, through `prepare` of lib.sh: found by name, kept when it is there."""
    (tmp_path / "raw").mkdir()
    row = {"problem": "What is 1 + 1?", "answer": "2"}
    (tmp_path / "raw/aime24.jsonl").write_text("".join(json.dumps(row | {"n": n}) + "\n" for n in range(30)))
    done = library(tmp_path, "prepare aime24 test boxed; prepare aime24 test boxed; prepare amc23 test boxed")
    assert done.stdout.count("30 rows written") == 1
    assert (
        done.stdout.splitlines()[-1]
        == f"test: SOURCES={tmp_path}/raw: no file amc23 or amc23_test (.jsonl, .json, .parquet, .arrow), "
        "no folder amc23"
    )
    assert done.returncode == 1
