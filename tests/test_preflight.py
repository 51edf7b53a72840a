"""Bad input ends before Ray starts, in one message that says what was expected, what was found and what to do."""

from __future__ import annotations

import pandas as pd
import pytest
import tiny
from conftest import run_python
from packaging.specifiers import SpecifierSet

from gpg_verl.compat import versions
from gpg_verl.launch.check import compose
from gpg_verl.launch.inputs import has_images
from gpg_verl.launch.machine import cpu_bytes_needed
from gpg_verl.launch.preflight import inspect


@pytest.fixture(scope="module")
def overrides(tiny_folder):
    import verl  # noqa: F401  loads the plugin

    return tiny.overrides(tiny_folder)


def problems(overrides, *more):
    config = compose([*overrides, *more])
    return inspect(config, [*overrides, *more]).all()


def test_the_tiny_run_is_sound(overrides):
    assert problems(overrides) == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.train_files=nowhere.parquet", ["data.train_files", "nowhere.parquet", "no such file"]),
        ("data.val_files=[nowhere.parquet]", ["data.val_files", "nowhere.parquet", "no such file"]),
        ("data.train_files={folder}/model", ["data.train_files", "no such file"]),
        ("data.train_files={folder}/reward.py", ["reward.py", "not .py"]),
        ("data.train_files={folder}/torn.parquet", ["torn.parquet", "not a readable parquet file", "write it again"]),
        ("data.train_files={folder}/torn.jsonl", ["torn.jsonl", "line 1 is not a JSON object"]),
        (
            "data.train_files={folder}/columns.parquet",
            ["without prompt, reward_model", "found data_source, question", "data_source, reward_model"],
        ),
        ("data.train_files={folder}/text.parquet", ["column prompt holds 'What is 1 + 1?'", "a list of messages"]),
        ("data.train_files={folder}/gold.parquet", ["column reward_model holds '2'", "ground_truth"]),
        ("data.train_batch_size=65", ["64 rows are fewer than data.train_batch_size=65"]),
        ("actor_rollout_ref.model.path={folder}/nothing", ["actor_rollout_ref.model.path", "no such folder"]),
        ("actor_rollout_ref.model.path={folder}", ["actor_rollout_ref.model.path", "without config.json"]),
        (
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=null",
            ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu is not set", "use_dynamic_bsz=True"],
        ),
        (
            "actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=9000000000000",
            ["too little memory", "GB are free"],
        ),
        (
            "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=0",
            ["update_weights_bucket_megabytes=0", "largest tensor", "must fit", "or more"],
        ),
    ],
)
def test_what_is_wrong_is_named(override, expected, overrides, tiny_folder):
    (tiny_folder / "torn.parquet").write_bytes((tiny_folder / "train.parquet").read_bytes()[:100])
    (tiny_folder / "torn.jsonl").write_text("{not json\n")
    rows = pd.read_parquet(tiny_folder / "train.parquet")
    rows.assign(prompt="What is 1 + 1?").to_parquet(tiny_folder / "text.parquet")
    rows.assign(reward_model="2").to_parquet(tiny_folder / "gold.parquet")
    pd.DataFrame({"data_source": ["x"] * 64, "question": ["?"] * 64}).to_parquet(tiny_folder / "columns.parquet")
    found = problems(overrides, override.format(folder=tiny_folder))
    assert len(found) == 1, found
    for text in expected:
        assert text in found[0]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.seed=1", False),
        ("data.train_files=[{folder}/train.parquet,{folder}/pictures.parquet]", True),
        ("data.val_files={folder}/pictures.parquet", True),
        ("data.val_files={folder}/pictures.parquet data.image_key=photos", False),
        ("actor_rollout_ref.model.path={folder}/sees", True),
        ("actor_rollout_ref.model.path=some/hub-model data.train_files=hdfs://remote.parquet", False),
    ],
)
def test_prompts_may_hold_images(override, expected, overrides, tmp_path, tiny_folder):
    for file in tiny_folder.glob("*.parquet"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rows = pd.read_parquet(tiny_folder / "train.parquet")
    rows.assign(images=[[]] * len(rows)).to_parquet(tmp_path / "pictures.parquet")
    (tmp_path / "sees").mkdir()
    (tmp_path / "sees/config.json").write_text('{"model_type": "qwen2_vl", "vision_config": {}}')
    assert has_images(compose([*overrides, *override.format(folder=tmp_path).split()])) == expected


def test_data_sources_that_reward_fns_does_not_know(overrides):
    train, val = problems(overrides, "reward.custom_reward_function.path=pkg://reward_fns")
    assert "data.train_files" in train
    assert "data.val_files" in val
    assert "data_source='tiny/vowels' is unknown to reward_fns" in train
    assert "name=default_compute_score" in train  # the way out


def test_a_rollout_engine_must_be_named(overrides):
    without = [o for o in overrides if o != "+preset=cpu" and "engine_kwargs" not in o]
    assert any("actor_rollout_ref.rollout.name is not set" in problem for problem in problems(without))


def test_memory_needed_grows_with_the_model(overrides):
    config = compose(overrides)
    assert cpu_bytes_needed(config, [[1000, 1000], [1000]]) == cpu_bytes_needed(config, []) + 8 * 4 * 1_001_000


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        (versions.PACKAGES[0], None),
        (
            versions.Wanted("vllm", ("vllm-none",), SpecifierSet(">=1"), "pip install it"),
            "vllm is not installed (wanted >=1): pip install it",
        ),
        (
            versions.Wanted("verl", ("verl",), SpecifierSet("==0.1"), "pip install verl==0.1"),
            "verl 0.9.1 is installed, wanted ==0.1: pip install verl==0.1",
        ),
    ],
)
def test_versions(package, expected):
    assert versions.problem(package) == expected


def test_a_run_stops_with_one_message_and_no_traceback(overrides, tmp_path):
    result = run_python(
        "-m",
        "verl.trainer.main_ppo",
        *overrides,
        "data.train_files=nowhere.parquet",
        "actor_rollout_ref.actor.use_kl_loss=True",
        cwd=tmp_path,
    )
    assert result.returncode == 1
    assert "this run cannot start" in result.stdout
    assert "nowhere.parquet: no such file" in result.stdout
    assert "actor_rollout_ref.actor.use_kl_loss=True contradicts" in result.stdout
    assert "Traceback" not in result.stdout
    assert "Started a local Ray instance" not in result.stdout
