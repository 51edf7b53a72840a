"""Bad input ends before Ray starts, in one message that says what was expected, what was found and what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
import tiny
from conftest import run_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gpg_verl.__main__ import main
from gpg_verl.launch import checks, prompts
from gpg_verl.launch.facts import Facts
from gpg_verl.launch.preflight import before_ray, look


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory) -> Path:
    """Where the commands of this file are typed: files with something wrong, and the tiny run's under `tiny`."""
    place = tmp_path_factory.mktemp("typed")
    (place / "tiny").symlink_to(tiny_folder)
    (place / "torn.jsonl").write_text("{not json\n")
    rows = pd.read_parquet(tiny_folder / "train.parquet")
    for name, changed in {
        "text": {"prompt": "What is 1 + 1?"},
        "other": {"extra_info": [{"index": "a"}] * 64},
        "pictures": {"images": [[]] * 64},
        "long": {"prompt": [[{"role": "user", "content": "a" * (3 + 20 * (i < 4))}] for i in range(64)]},
        "some_long": {"prompt": [[{"role": "user", "content": "a" * (3 + 20 * (i < 3))}] for i in range(64)]},
    }.items():
        rows.assign(**changed).to_parquet(place / f"{name}.parquet")
    rows.iloc[:0].to_parquet(place / "none.parquet")
    pd.DataFrame({"data_source": ["x"] * 64, "question": ["?"] * 64}).to_parquet(place / "columns.parquet")
    (place / "sees").mkdir()
    (place / "sees/config.json").write_text('{"model_type": "qwen2_vl", "vision_config": {}}')
    (place / "by_place.py").write_text("def compute_score(answer, gold):\n    return 1.0\n")
    (place / "takes_more.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info, tokenizer):\n    return 1.0\n"
    )
    (place / "takes_all.py").write_text(
        "async def compute_score(solution_str, *, last=False, **more):\n    return 1.0\n"
    )
    (place / "loops.yaml").write_text("- name: mine\n  _target_: nowhere.Loop\n")
    (place / "tools.yaml").write_text("tools:\n  - class_name: verl.tools.base_tool.NoTool\n")
    return place


@pytest.fixture
def typed(folder, tiny_config, monkeypatch):
    """typed("key=value ..."): the findings of a look at the tiny run with these settings."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("RAY_ADDRESS", "GPG_WORK_ELSEWHERE", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")

    def typed(override: str, **more):
        return look(tiny_config(*override.split()), override.split(), **more)

    return typed


def test_the_tiny_run_is_sound(typed):
    found = typed("data.seed=1")
    assert (found.contradictions, found.lacking, found.warnings) == ([], [], [])


ROLLOUT, ACTOR, REWARD = "actor_rollout_ref.rollout", "actor_rollout_ref.actor", "reward.custom_reward_function"
LOOP, TOOLS = f"{ROLLOUT}.agent.agent_loop_config_path", f"{ROLLOUT}.multi_turn.tool_config_path"
UNITS, CPUS = "transfer_queue.backend.SimpleStorage.num_data_storage_units", "ray_kwargs.ray_init.num_cpus"
OF_EACH_MACHINE = "veRL takes this for a folder called s3: of each machine"
REFUSED = "veRL refuses the configuration"
WRONG_ANYWHERE = [
    ("data.train_files=tiny/model", ["data.train_files: tiny/model", "not a folder"]),
    ("data.val_files=torn.jsonl", ["data.val_files: torn.jsonl: line 1 is not a JSON object"]),
    (
        "data.train_files=columns.parquet",
        ["without prompt, reward_model", "found data_source, question", "data_source, reward_model"],
    ),
    ("data.train_files=text.parquet", ["row 0: column prompt holds 'What is 1 + 1?'", "list of messages"]),
    ("data.val_files=none.parquet", ["data.val_files: 0 rows", "name a file that has some"]),
    ("data.train_files=[tiny/train.parquet,other.parquet]", ["column extra_info is of other types", "write them"]),
    ("data.train_batch_size=65", ["64 rows are fewer than data.train_batch_size=65"]),
    ("data.train_max_samples=3", ["data.train_max_samples=3 is fewer than data.train_batch_size=4"]),
    ("+data.gen_batch_size=100", ["64 rows are fewer than data.gen_batch_size=100"]),
    ("data.train_batch_size='4'", ["data.train_batch_size='4': expected a whole number from 1"]),
    ("trainer.project_name=${nowhere}", ["a value cannot be resolved", "nowhere"]),
    (f"{REWARD}.path=torn.jsonl", ["cannot be loaded (SyntaxError", "torn.jsonl"]),
    (f"{REWARD}.name=score", ["reward.py: does not define score", f"name what it defines as {REWARD}.name"]),
    (f"{REWARD}.path=by_place.py", ["compute_score(answer, gold) ", "data_source", "solution_str, ground_truth"]),
    (f"{REWARD}.path=takes_more.py", ["missing a required", "'tokenizer'", "write def compute_score(data_source"]),
    (f"{LOOP}=torn.jsonl", [f"{LOOP}=torn.jsonl: cannot be read"]),
    (f"{TOOLS}=tools.yaml", ["class_name=verl.tools.base_tool.NoTool: does not define NoTool"]),
    (f"{ROLLOUT}.agent.default_agent_loop=mine", ["=mine: no agent loop has this name", "single_turn_agent", LOOP]),
    (f"{ACTOR}.strategy=megatron", ["strategy=megatron alone has none", "model_engine=megatron"]),
    ("trainer.logger=[console,wandbb]", ["trainer.logger=wandbb: known are wandb"]),
    ("trainer.n_gpus_per_node=3", [f"{REFUSED}: real_train_batch_size (32) must be divisible"]),
    (f"{ACTOR}.ppo_mini_batch_size=5", [f"{REFUSED}: train_batch_size (4) must be"]),
    (f"{ACTOR}.ppo_micro_batch_size=2", [f"{REFUSED}: [actor] You have set both"]),
    (f"{ROLLOUT}.log_prob_micro_batch_size=2", [REFUSED, "You have set both"]),
    (f"{ACTOR}.loss_agg_mode=mean", [f"{REFUSED}: Invalid loss_agg_mode: mean"]),
    (f"{ROLLOUT}.mode=sync", [f"{REFUSED}: Rollout mode 'sync' has been removed"]),
    (f"+{ROLLOUT}.temprature=1", [REFUSED, "temprature"]),
    ("actor_rollout_ref.model.path=tiny", ["actor_rollout_ref.model.path", "without config.json"]),
    (f"{ACTOR}.ppo_micro_batch_size_per_gpu=", ["micro_batch_size_per_gpu is not set", "use_dynamic_bsz=True"]),
    (
        f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes=0",
        ["update_weights_bucket_megabytes=0", "largest tensor", "must fit", "or more"],
    ),
    ("trainer.save_freq=1 trainer.default_local_dir=s3://b/run", [OF_EACH_MACHINE]),
    ("trainer.rollout_data_dir=s3://b/run", [OF_EACH_MACHINE]),
    ("trainer.resume_mode=resume_path trainer.resume_from_path=s3://b/global_step_2", [OF_EACH_MACHINE]),
    ("actor_rollout_ref.model.path=s3://b/model", ["veRL loads a folder, a hub's name or hdfs://"]),
    ("data.train_files=abc://b/train.parquet", ["=abc://b/train.parquet: Protocol not known: abc"]),
    ("trainer.save_freq=1 trainer.default_hdfs_dir=hdfs://b/run", ["with actor.strategy=fsdp2 veRL copies nothing"]),
    (
        "data.train_files=long.parquet",
        ["4 of 64 rows (6.2%)", "more than data.max_prompt_length=8 tokens, up to 25", "data.max_prompt_length=25",
         "data.filter_overlong_prompts=True", "max_dropped_share"],
    ),
]  # fmt: skip
NOT_ON_THIS_MACHINE = [
    ("data.train_files=nowhere.parquet", ["data.train_files", "nowhere.parquet", "no such file"]),
    ("data.val_files=[nowhere.parquet]", ["data.val_files", "nowhere.parquet", "no such file"]),
    (f"{REWARD}.path=nowhere.py", ["custom_reward_function.path=nowhere.py: no such file"]),
    (f"{REWARD}.path=pkg://gpg_verl.nowhere", ["pkg://gpg_verl.nowhere: no such package"]),
    (
        "reward.reward_manager.source=importlib reward.reward_manager.module.path=mine.py",
        ["reward.reward_manager.module.path=mine.py: no such file"],
    ),
    ("data.custom_cls.path=mine.py data.custom_cls.name=Mine", ["data.custom_cls.path=mine.py: no such file"]),
    (f"{LOOP}=nowhere.yaml", [f"{LOOP}=nowhere.yaml: no such file"]),
    (f"{LOOP}=loops.yaml {ROLLOUT}.agent.default_agent_loop=mine", ["loops.yaml: _target_=nowhere.Loop: no such pack"]),
    (f"+{ROLLOUT}.agent.agent_loop_manager_class=nowhere.Manager", ["manager_class=nowhere.Manager: no such package"]),
    (f"{TOOLS}=nowhere.yaml", [f"{TOOLS}=nowhere.yaml: no such file"]),
    (f"{ROLLOUT}.multi_turn.function_tool_path=nowhere.py", ["function_tool_path=nowhere.py: no such file"]),
    ("actor_rollout_ref.model.path=/nowhere/model", ["actor_rollout_ref.model.path", "no such folder"]),
    (f"{ROLLOUT}.engine_kwargs.vllm.kv_cache_memory_bytes=9000000000000", ["too little memory", "GB are free"]),
    ("actor_rollout_ref.model.path=hdfs://b/model", ["fetches it by the command hdfs, which is not on the PATH"]),
    ("data.val_files=[hdfs://b/a.parquet]", ["data.val_files=hdfs://b/a.parquet: veRL fetches it by the command hdfs"]),
    ("data.train_files=gs://b/train.parquet", ["install gcsfs"]),
    ("actor_rollout_ref.model.override_config.attn_implementation=", ["flash_attention_2, veRL's", "by pip alone"]),
    (f"{CPUS}=4", ["reserves 5, namely 1 (the controller", "3 for each of 1 GPUs", f"{CPUS}=4", f"set {CPUS}=5"]),
    (f"{CPUS}=8 {UNITS}=8", ["reserves 12", f"8 ({UNITS}=8)", f"{UNITS}=1, which is enough"]),
    ("trainer.logger=[console,wandb]", ["nobody is logged in to api.wandb.ai", "wandb login", "WANDB_MODE=offline"]),
    ("trainer.logger=[console,swanlab]", ["trainer.logger=swanlab: pip install swanlab"]),
]
TAKEN = [
    "data.train_files=https://host/train.parquet",
    "trainer.resume_from_path=s3://b/global_step_2",  # not read
    "trainer.default_hdfs_dir=hdfs://b/run",  # nothing is saved
    f"{REWARD}.path=takes_all.py",
    f"{REWARD}.path=takes_more.py +{REWARD}.reward_kwargs.tokenizer=a",
    f"{ROLLOUT}.agent.default_agent_loop=tool_agent",
    f"{CPUS}=5",
    "trainer.logger=[console,wandb] +ray_kwargs.ray_init.runtime_env.env_vars.WANDB_MODE=offline",
    "data.train_files=long.parquet data.filter_overlong_prompts=True",
    "data.train_files=long.parquet data.max_prompt_length=25",
]
WARNED = [
    ("trainer.total_training_steps=1000", "=1000 is not reached: 30 epochs of 64 rows are 480 steps"),
    ("data.train_files=some_long.parquet", "3 of 64 rows (4.7%) have a prompt of more than data.max_prompt_length=8"),
    ("+algorithm.gpg.max_dropped_share=0.1 data.train_files=long.parquet", "4 of 64 rows (6.2%)"),
    ("actor_rollout_ref.model.path=some/hub-model", "not counted (the tokenizer of some/hub-model is not on this"),
]


@pytest.mark.parametrize(("override", "expected"), WRONG_ANYWHERE)
def test_what_is_wrong_is_named(typed, override, expected):
    found = typed(override)
    assert (len(found.contradictions), found.lacking) == (1, []), found
    (message,) = found.contradictions
    assert "\n" not in message
    assert [text for text in expected if text not in message] == []
    assert found.hint is None


@pytest.mark.parametrize(("override", "expected"), NOT_ON_THIS_MACHINE)
def test_what_this_machine_lacks_stops_a_run_here_and_is_told_of_one_elsewhere(typed, monkeypatch, override, expected):
    found = typed(override)
    (message,) = found.lacking
    assert [text for text in expected if text not in message] == []
    assert found.split_by_severity()[0] == [message]
    assert "GPG_WORK_ELSEWHERE=1" in found.hint
    monkeypatch.setenv("GPG_WORK_ELSEWHERE", "1")
    elsewhere = typed(override)
    stopping, told = elsewhere.split_by_severity()
    assert (stopping, elsewhere.hint) == ([], None)
    assert override.startswith(CPUS) or any("GPG_WORK_ELSEWHERE=1, so its nodes need it" in line for line in told)


@pytest.mark.parametrize("override", TAKEN)
def test_what_will_do_goes_through(typed, override):
    assert typed(override).split_by_severity()[0] == []


@pytest.mark.parametrize(("override", "expected"), WARNED)
def test_what_may_be_meant_is_a_warning(typed, override, expected):
    found = typed(override)
    assert found.split_by_severity()[0] == []
    assert any(expected in warning for warning in found.warnings), found.warnings


def prompt_lengths(config) -> list[int]:
    facts = Facts(config)
    return prompts.prompt_lengths(facts, facts.splits[0])


def test_every_prompt_is_as_long_as_in_verls_agent_loop(folder, tiny_config):
    """The count against what veRL's loop would tokenize, cut or not."""
    from verl.utils.tokenizer import hf_tokenizer
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    builder = create_continuous_token_builder(hf_tokenizer(f"{folder}/tiny/model"), hf_model_type="llama")
    rows = pd.read_parquet(folder / "long.parquet")["prompt"]
    lengths = [len(builder.build_initial_tokens(list(prompt))) for prompt in rows]
    assert prompt_lengths(tiny_config(f"data.train_files={folder}/long.parquet")) == lengths


def test_images_count_by_their_grid(tiny_vision_folder, tiny_config, tmp_path):
    import io

    from PIL import Image
    from verl.utils.tokenizer import build_multimodal_processor_inputs, hf_processor

    data, model = io.BytesIO(), tiny_vision_folder / "model"
    image = Image.new("RGB", (100, 60))
    image.save(data, "PNG")
    prompt = [{"role": "user", "content": "<image> red"}]
    row = {"prompt": prompt, "images": [{"bytes": data.getvalue(), "path": None}], "data_source": "a"}
    pd.DataFrame([row] * 4).to_parquet(tmp_path / "seen.parquet")
    config = tiny_config(f"actor_rollout_ref.model.path={model}", f"data.train_files={tmp_path}/seen.parquet")
    processor = hf_processor(str(model))
    pieces = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " red"}]}]
    text = processor.apply_chat_template(pieces, add_generation_prompt=True, tokenize=False)
    tokens = len(build_multimodal_processor_inputs(processor, text=[text], images=[image])["input_ids"][0])
    assert prompt_lengths(config) == [tokens] * 4


HOLDS_IMAGES = {
    "data.seed=1": False,
    "data.train_files=[tiny/train.parquet,pictures.parquet]": True,
    "data.val_files=pictures.parquet": True,
    "data.val_files=pictures.parquet data.image_key=photos": False,
    "actor_rollout_ref.model.path=sees": True,
    "actor_rollout_ref.model.path=some/hub-model data.train_files=hdfs://remote.parquet": False,
}


def test_prompts_may_hold_images(folder, tiny_config, monkeypatch):
    monkeypatch.chdir(folder)
    assert {override: Facts(tiny_config(*override.split())).has_images for override in HOLDS_IMAGES} == HOLDS_IMAGES


def test_with_the_command_hdfs_is_verls(typed, monkeypatch, tmp_path):
    (tmp_path / "hdfs").write_text("#!/bin/sh\n")
    (tmp_path / "hdfs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [override for override, _ in NOT_ON_THIS_MACHINE if "hdfs:" in override and typed(override).lacking] == []


def test_a_check_that_fails_keeps_no_other_from_being_asked(typed, monkeypatch):
    def fails(facts):
        yield from ()
        raise ValueError("odd")

    monkeypatch.setattr("gpg_verl.launch.preflight.CHECKS", (fails, lambda facts: ["the other"]))
    assert typed("").contradictions == ["the configuration cannot be used: odd", "the other"]


def test_no_folder_is_made_for_a_bucket(typed, folder):
    before = set(os.listdir(folder))
    typed("trainer.save_freq=1 trainer.default_local_dir=s3://b/run", claim=True)
    assert set(os.listdir(folder)) == before


@pytest.mark.parametrize(
    ("address", "place", "warned"),
    [("10.0.0.1:6379", "runs/a", True), ("10.0.0.1:6379", "/shared/a", False), ("", "runs/a", False)],
)
def test_a_relative_folder_on_a_cluster_is_warned_of(tiny_config, monkeypatch, address, place, warned):
    monkeypatch.setenv("RAY_ADDRESS", address)
    facts = Facts(tiny_config("trainer.save_freq=1", f"trainer.default_local_dir={place}"))
    assert any("is relative" in message for message in checks.checkpoints(facts)) == warned


def test_data_sources_that_reward_fns_does_not_know(typed):
    train, val = typed(f"{REWARD}.path=pkg://reward_fns").contradictions
    assert train.startswith("data.train_files")
    assert val.startswith("data.val_files")
    assert "data_source='tiny/vowels' is unknown to reward_fns" in train
    assert "name=default_compute_score" in train


def test_without_the_preset(tiny_folder):
    from gpg_verl.launch.check import compose

    without = [o for o in tiny.overrides(tiny_folder) if o != "+preset=cpu" and "engine_kwargs" not in o]
    found = look(compose(without), without).contradictions
    assert any("actor_rollout_ref.rollout.name is not set" in problem for problem in found)
    megatron = [
        *without, f"{ROLLOUT}.name=vllm", "model_engine=megatron", f"{ACTOR}.megatron.tensor_model_parallel_size=3"
    ]  # fmt: skip
    found = look(compose(megatron), megatron).contradictions
    assert any("refuses the configuration: n_gpus (8) must be divisible by model_par" in line for line in found)


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
def test_whatever_is_set_check_and_the_run_say_the_same_in_words(data, tiny_folder, tiny_config, tmp_path, monkeypatch):
    """No setting of veRL's, however odd, ends either of them with a trace."""
    monkeypatch.chdir(tmp_path)
    config, overrides = tiny_config(), tiny.overrides(tiny_folder)
    keys = st.sampled_from(sorted({*leaves(OmegaConf.to_container(config))} - {"algorithm.adv_estimator"}))
    changed = data.draw(st.dictionaries(keys, st.sampled_from(ODD), min_size=1, max_size=3))
    OmegaConf.set_struct(config, False)
    for key, value in changed.items():
        OmegaConf.update(config, key, value, merge=False)
    OmegaConf.set_struct(config, True)
    stopping, told = look(config.copy(), [*overrides, *changed]).split_by_severity()
    assert all(line.strip() and "\n" not in line for line in (*stopping, *told))
    monkeypatch.setattr("gpg_verl.launch.preflight.typed_overrides", lambda: [*overrides, *changed])
    if not stopping:
        return before_ray(config)
    with pytest.raises(SystemExit) as stopped:
        before_ray(config)
    assert [line for line in stopping if f"  - {line}\n" not in str(stopped.value)] == []


def test_a_run_stops_with_one_message_and_no_traceback(tiny_folder, tmp_path):
    wrong = ["data.train_files=nowhere.parquet", f"{ACTOR}.use_kl_loss=True"]
    result = run_python("-m", "verl.trainer.main_ppo", *tiny.overrides(tiny_folder), *wrong, cwd=tmp_path)
    assert result.returncode == 1
    expected = ["this run cannot start", "nowhere.parquet: no such file", "use_kl_loss=True contradicts"]
    assert [text for text in expected if text not in result.stdout] == []
    assert [text for text in ("Traceback", "Started a local Ray instance") if text in result.stdout] == []


@pytest.mark.parametrize(
    ("overrides", "code", "expected"),
    [
        (["data.train_files=nowhere.parquet"], 1, ["error   ", "nowhere.parquet: no such", "1 errors, 0 warnings"]),
        (
            ["data.train_files=nowhere.parquet", "+ray_kwargs.ray_init.address=ray://head:10001"],
            0,
            ["warning not on this machine, and the run goes to the Ray at ray://head:10001", "no such file"],
        ),
        (["critic.enable=True", "+algorithm.gpg.alfa=1"], 1, ["critic.enable=True", "did you mean"]),
        (["trainer.stepps=3"], 1, ["stepps"]),
        (["algorithm.adv_estimator=grpo"], 1, ["this is not a GPG run"]),
        (["data.train_batch_size=four"], 1, ["data.train_batch_size='four': expected a whole number from 1"]),
        (["trainer.total_training_steps=1000"], 0, ["warning trainer.total_training_steps=1000", "to 63"]),
        (["--config-path=config", "--config-name=ppo_trainer.yaml"], 0, ["0 errors, 0 warnings"]),
        (["--config-path=pkg://verl.trainer.config"], 0, ["0 errors, 0 warnings"]),
        (["-cp", "nowhere"], 1, ["the config does not compose", "verl/trainer/nowhere"]),
    ],
)  # fmt: skip
def test_check_judges_as_the_run_does(overrides, code, expected, tiny_folder, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["check", *tiny.overrides(tiny_folder), *overrides]) == code
    out = capsys.readouterr().out
    assert [text for text in expected if text not in out] == []


def test_check_says_what_a_run_trains_with(tmp_path, tiny_folder):
    """In a narrow pipe too, each key with its value is on one line, as it could be typed."""
    good = run_python("-m", "gpg_verl", "check", *tiny.overrides(tiny_folder), cwd=tmp_path, COLUMNS="40")
    assert good.returncode == 0, good.stdout
    assert "0 errors, 0 warnings" in good.stdout
    assert "\n  trainer.v1.trainer_mode=gpg_sync  # GPG, was sync: " in good.stdout
    assert "\n  +algorithm.gpg.max_rollout_gap=null\n" in good.stdout
