"""Bad input ends before Ray starts, in one message that says what was expected, what was found and what to do."""

from __future__ import annotations

import pandas as pd
import pytest
import tiny
from conftest import run_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from packaging.specifiers import SpecifierSet

from gpg_verl.compat import versions
from gpg_verl.launch.check import compose
from gpg_verl.launch.data_files import read_split
from gpg_verl.launch.inputs import has_images
from gpg_verl.launch.machine import cpu_bytes_needed
from gpg_verl.launch.preflight import before_ray, look, verls_validation


@pytest.fixture(scope="module")
def overrides(tiny_folder):
    import verl  # noqa: F401  loads the plugin

    return tiny.overrides(tiny_folder)


def problems(overrides, *more):
    config = compose([*overrides, *more])
    return look(config, [*overrides, *more]).all()


def test_the_tiny_run_is_sound(overrides):
    assert problems(overrides) == []


# What veRL itself has against a run, as it says it.
VERLS_REFUSALS = [
    ("trainer.n_gpus_per_node=3", ["veRL refuses the configuration: real_train_batch_size (32) must be divisible"]),
    ("actor_rollout_ref.actor.ppo_mini_batch_size=5", ["veRL refuses the configuration: train_batch_size (4) must be"]),
    ("actor_rollout_ref.actor.ppo_micro_batch_size=2", ["veRL refuses the configuration: [actor] You have set both"]),
    ("actor_rollout_ref.rollout.log_prob_micro_batch_size=2", ["veRL refuses the configuration", "You have set both"]),
    ("actor_rollout_ref.actor.loss_agg_mode=mean", ["veRL refuses the configuration: Invalid loss_agg_mode: mean"]),
    ("actor_rollout_ref.rollout.mode=sync", ["veRL refuses the configuration: Rollout mode 'sync' has been removed"]),
    ("+actor_rollout_ref.rollout.temprature=1", ["veRL refuses the configuration", "temprature"]),
]


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
        ("data.train_files={folder}/text.parquet", ["row 0: column prompt holds 'What is 1 + 1?'", "list of messages"]),
        ("data.train_files={folder}/gold.parquet", ["row 0: column reward_model holds '2'", "ground_truth"]),
        ("data.val_files={folder}/none.parquet", ["data.val_files: 0 rows", "name a file that has some"]),
        (
            "data.train_files=[{folder}/train.parquet,{folder}/other.parquet]",
            ["column extra_info is of other types", "write them alike"],
        ),
        ("data.train_batch_size=65", ["64 rows are fewer than data.train_batch_size=65"]),
        ("data.train_max_samples=3", ["data.train_max_samples=3 is fewer than data.train_batch_size=4"]),
        ("data.gen_batch_size=100", ["64 rows are fewer than data.gen_batch_size=100"]),
        ("data.train_batch_size='4'", ["data.train_batch_size='4': expected a whole number from 1"]),
        ("trainer.project_name=${{nowhere}}", ["a value cannot be resolved", "nowhere"]),
        ("reward.custom_reward_function.path=nowhere.py", ["custom_reward_function.path=nowhere.py: no such file"]),
        ("reward.custom_reward_function.path={folder}/torn.jsonl", ["cannot be loaded (SyntaxError", "torn.jsonl"]),
        (
            "reward.custom_reward_function.name=score",
            ["reward.py: does not define score", "name what it defines as reward.custom_reward_function.name"],
        ),
        ("reward.custom_reward_function.path=pkg://gpg_verl.nowhere", ["pkg://gpg_verl.nowhere: no such package"]),
        (
            "reward.reward_manager.source=importlib reward.reward_manager.module.path=mine.py",
            ["reward.reward_manager.module.path=mine.py: no such file"],
        ),
        ("data.custom_cls.path=mine.py data.custom_cls.name=Mine", ["data.custom_cls.path=mine.py: no such file"]),
        ("actor_rollout_ref.actor.strategy=megatron", ["strategy=megatron alone has none", "model_engine=megatron"]),
        *VERLS_REFUSALS,
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
    rows.iloc[:0].to_parquet(tiny_folder / "none.parquet")
    rows.assign(extra_info=[{"index": "a"}] * len(rows)).to_parquet(tiny_folder / "other.parquet")
    pd.DataFrame({"data_source": ["x"] * 64, "question": ["?"] * 64}).to_parquet(tiny_folder / "columns.parquet")
    found = problems(overrides, *override.format(folder=tiny_folder).split())
    assert len(found) == 1, found
    assert "\n" not in found[0]
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
    config = compose([*overrides, *override.format(folder=tmp_path).split()])
    assert has_images(config, [read_split(config, split) for split in ("train", "val")]) == expected


@pytest.fixture(scope="module")
def composed(overrides):
    return compose(overrides)


def leaves(node, path=""):
    """Every key that has a value of its own."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


ODD = (None, True, False, 0, 1, -1, 3, 2.5, "8", "", "typo", [], [1], {}, {"a": 1}, "${nowhere}", float("nan"))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_set_check_and_the_run_say_the_same_in_words(data, overrides, composed, tmp_path, monkeypatch):
    """No setting of veRL's, however odd, ends either of them with a trace."""
    monkeypatch.chdir(tmp_path)
    keys = st.sampled_from(sorted({*leaves(OmegaConf.to_container(composed))} - {"algorithm.adv_estimator"}))
    changed = data.draw(st.dictionaries(keys, st.sampled_from(ODD), min_size=1, max_size=3))
    config = composed.copy()
    OmegaConf.set_struct(config, False)
    for key, value in changed.items():
        OmegaConf.update(config, key, value, merge=False)
    OmegaConf.set_struct(config, True)
    found = look(config.copy(), [*overrides, *changed]).all()
    assert all(line.strip() and "\n" not in line for line in found)
    monkeypatch.setattr("gpg_verl.launch.preflight.typed_overrides", lambda: [*overrides, *changed])
    if not found:
        return before_ray(config, False, False, verls_validation)
    with pytest.raises(SystemExit) as stopped:
        before_ray(config, False, False, verls_validation)
    assert [line for line in found if f"  - {line}\n" not in str(stopped.value)] == []


def test_data_sources_that_reward_fns_does_not_know(overrides):
    train, val = problems(overrides, "reward.custom_reward_function.path=pkg://reward_fns")
    assert "data.train_files" in train
    assert "data.val_files" in val
    assert "data_source='tiny/vowels' is unknown to reward_fns" in train
    assert "name=default_compute_score" in train  # the way out


def test_without_the_preset(overrides):
    without = [o for o in overrides if o != "+preset=cpu" and "engine_kwargs" not in o]
    assert any("actor_rollout_ref.rollout.name is not set" in problem for problem in problems(without))
    megatron = ["model_engine=megatron", "actor_rollout_ref.actor.megatron.tensor_model_parallel_size=3"]
    found = problems([*without, "actor_rollout_ref.rollout.name=vllm", *megatron])
    assert any("refuses the configuration: n_gpus (8) must be divisible by model_par" in line for line in found)


def test_memory_needed_grows_with_the_model(overrides):
    config = compose(overrides)
    assert cpu_bytes_needed(config, [[1000, 1000], [1000]]) == cpu_bytes_needed(config, []) + 8 * 4 * 1_001_000


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        (versions.PACKAGES[0], None),
        (
            versions.Requirement("vllm", ("vllm-none",), SpecifierSet(">=1"), "pip install it"),
            "vllm is not installed (wanted >=1): pip install it",
        ),
        (
            versions.Requirement("verl", ("verl",), SpecifierSet("==0.1"), "pip install verl==0.1"),
            "verl 0.9.1 is installed, wanted ==0.1: pip install verl==0.1",
        ),
    ],
)
def test_versions(package, expected):
    assert versions.problem(package) == expected


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (
            ["data.train_files=nowhere.parquet", "actor_rollout_ref.actor.use_kl_loss=True"],
            ["nowhere.parquet: no such file", "actor_rollout_ref.actor.use_kl_loss=True contradicts"],
        ),
        (
            ["actor_rollout_ref.actor.loss_agg_mode=mean"],
            ["veRL refuses the configuration: Invalid loss_agg_mode: mean"],
        ),
    ],
)
def test_a_run_stops_with_one_message_and_no_traceback(wrong, expected, overrides, tmp_path):
    result = run_python("-m", "verl.trainer.main_ppo", *overrides, *wrong, cwd=tmp_path)
    assert result.returncode == 1
    assert "this run cannot start" in result.stdout
    for text in expected:
        assert text in result.stdout
    assert "Traceback" not in result.stdout
    assert "Started a local Ray instance" not in result.stdout
