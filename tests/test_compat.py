"""Does the installed veRL still have every place that gpg_verl uses or patches? Fast, nothing is run.

The places are read out of the package's source (tests/compat.py); the tables here say what cannot be read there: which
class stands behind a variable, where a patched function lives, which methods are meant to be replaced. A failure lists
every place that changed. `.ci/newest-verl` runs this against the newest veRL.
"""

from __future__ import annotations

import copy
import inspect

import compat
import pytest
from conftest import run_python
from omegaconf import open_dict

from gpg_verl.compat.seams import seam

V1 = "verl.trainer.ppo.v1"
BUFFER = f"{V1}.replay_buffer:ReplayBuffer"
FSDP = "verl.workers.engine.fsdp.transformer_impl"
ENGINE = "verl.workers.engine.base:BaseEngine"
AGENTS = "verl.experimental.agent_loop.agent_loop"
TRANSFER = "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer"

# What each class of ours replaces in veRL's.
STEP = {
    *("__init__", "_balance_batch", "_build_replay_buffer", "_compute_advantage", "_compute_old_log_prob"),
    *("_fetch_one_gen_batch", "_get_required_batch_multiple", "_init_dataloader", "_init_resource_pool_mgr"),
    *("_load_checkpoint", "_save_checkpoint", "_submit_batch_to_rollout", "_update_actor", "step"),
    *("_setup", "_val_metrics_update", "fit", "on_init_end", "on_sample_end", "on_step_begin", "on_step_end"),
}
REPLACED = {
    "gpg_verl.training.trainer:GPGTrainerSync": STEP,
    "gpg_verl.training.trainer:GPGTrainerColocateAsync": STEP,
    "gpg_verl.training.trainer:GPGTrainerSeparateAsync": STEP,
    "gpg_verl.training.actor:GPGTrainingWorker": {
        "__init__",
        *("_postprocess_output", "infer_batch", "train_mini_batch"),
    },
    "gpg_verl.training.actor:GPGActor": {"actor_worker_cls"},
    "gpg_verl.training.actor:GPGDetachedActor": {"actor_worker_cls"},
    "gpg_verl.determinism:AgentLoopManagerSeeded": {"__init__", "generate_sequences"},
    "gpg_verl.determinism:AgentLoopWorkerSeeded": {"__init__", "_run_agent_loop"},
    "gpg_verl.reward_manager:TruncationRewardManager": {"run_single"},
    "gpg_verl.guards.rewards:RewardLoopWorkerChecked": {"_init_reward_fn", "compute_score"},
    "gpg_verl.cpu.checkpoint_engine:FilesCheckpointEngine": {
        *("build_topology", "finalize", "init_process_group", "prepare", "receive_weights", "send_weights"),
    },
    "gpg_verl.cpu.platform:CPUPlatform": {
        *("communication_backend_name", "cudart", "current_device", "device_count", "device_module", "device_name"),
        *("empty_cache", "get_device_capability", "is_available", "is_ipc_supported", "is_platform_available"),
        *("manual_seed", "manual_seed_all", "nvtx_range", "profiler_start", "profiler_stop", "ray_noset_envvars"),
        *("ray_resource_name", "set_allocator_settings", "set_device", "synchronize", "vendor_name"),
        "visible_devices_envvar",
    },
}

# Where each patched function lives.
SEAMS = {
    ("gpg_verl/launch/hooks.py", "validate_config"): ["verl.utils.config"],
    ("gpg_verl/guards/exit.py", "run_ppo"): ["verl.trainer.main_ppo"],
    ("gpg_verl/launch/hooks.py", "__init__"): ["verl.trainer.ppo.ray_trainer:RayPPOTrainer"],
    ("gpg_verl/guards/dropped_rows.py", "maybe_filter_out_long_prompts"): ["verl.utils.dataset.rl_dataset:RLHFDataset"],
    ("gpg_verl/guards/liveness.py", "_wait_for_next_poll"): [BUFFER],
    ("gpg_verl/guards/rewards.py", "compute_score"): ["verl.experimental.reward_loop.reward_loop:RewardLoopWorker"],
    ("gpg_verl/training/replay_buffer.py", "_sync_metadata_from_transfer_queue"): [BUFFER],
    ("gpg_verl/training/replay_buffer.py", "_terminal_eviction_reasons"): [BUFFER],
    ("gpg_verl/training/replay_buffer.py", "_evict_terminal_groups"): [BUFFER],
    ("gpg_verl/training/replay_buffer.py", "_clear_groups"): [BUFFER],
    ("gpg_verl/training/replay_buffer.py", "_materialize_batch"): [BUFFER],
    ("gpg_verl/training/replay_buffer.py", "_has_enough_samples"): [f"{V1}.replay_buffer:ReplayBufferAsync"],
    ("gpg_verl/training/replay_buffer.py", "_accumulate_eviction_metrics"): [f"{V1}.replay_buffer"],
    ("gpg_verl/training/actor.py", "lr_scheduler_step"): [
        ENGINE,
        "verl.workers.engine.fsdp.transformer_impl:FSDPEngine",
    ],
    ("gpg_verl/training/passes.py", "prepare_model_inputs"): [f"{FSDP}:FSDPEngineWithLMHead"],
    ("gpg_verl/training/passes.py", "prepare_model_outputs"): [f"{FSDP}:FSDPEngineWithLMHead"],
    ("gpg_verl/training/passes.py", "prepare_micro_batches"): [FSDP],
    ("gpg_verl/training/passes.py", "optimizer_step"): [f"{FSDP}:FSDPEngineWithLMHead"],
    ("gpg_verl/training/sessions.py", "_run_agent_loop"): [f"{AGENTS}:AgentLoopWorker"],
    ("gpg_verl/training/sessions.py", "_compute_score"): [f"{AGENTS}:AgentLoopWorker"],
    ("gpg_verl/training/sessions.py", "_cap_text_prompt_length"): [f"{AGENTS}:AgentLoopBase"],
    ("gpg_verl/training/passes.py", "_custom_flash_attention_forward"): ["verl.models.transformers.qwen2_vl"],
    ("gpg_verl/compat/verl_fixes.py", "_get_input_embeds"): ["verl.models.transformers.qwen2_vl"],
    ("gpg_verl/compat/verl_fixes.py", "unpack_visual_output"): ["verl.models.transformers.qwen2_vl"],
    ("gpg_verl/cpu/verl_patches.py", "initialize_global_process_group_ray"): ["verl.utils.distributed"],
    ("gpg_verl/cpu/verl_patches.py", "__init__"): ["verl.workers.engine.fsdp.transformer_impl:CPUOffloadPolicy"],
    ("gpg_verl/cpu/verl_patches.py", "_init_socket"): [
        f"{TRANSFER}:BucketedWeightSender",
        f"{TRANSFER}:BucketedWeightReceiver",
    ],
    ("gpg_verl/cpu/verl_patches.py", "async_send_weights"): [f"{TRANSFER}:BucketedWeightSender"],
}
# Not veRL's: transformers and vLLM are pinned beside it, and every CPU run goes through these.
OTHERS = {
    *("from_pretrained", "get_video_processor_dict", "dispatch_cpu_unquantized_gemm", "compiled_random_sample"),
}

# veRL's objects that no class of ours derives from, by the variable that holds one: (file, variable) → class.
OBJECTS = {
    ("gpg_verl/training/replay_buffer.py", "buffer"): BUFFER,
    ("gpg_verl/training/replay_buffer.py", "self.buffer"): f"{V1}.replay_buffer:ReplayBufferAsync",
    (
        "gpg_verl/training/replay_buffer.py",
        "self.checkpoint_manager",
    ): "verl.checkpoint_engine.base:CheckpointEngineManager",
    ("gpg_verl/guards/liveness.py", "buffer"): BUFFER,
    ("gpg_verl/guards/guarded_run.py", "buffer"): BUFFER,
    ("gpg_verl/training/trainer.py", "batch"): "transfer_queue:KVBatchMeta",
    ("gpg_verl/training/trainer.py", "part"): "transfer_queue:KVBatchMeta",
    ("gpg_verl/training/trainer.py", "padding"): "transfer_queue:KVBatchMeta",
    ("gpg_verl/guards/guarded_run.py", "manager"): "verl.workers.rollout.llm_server:LLMServerManager",
    ("gpg_verl/guards/guarded_run.py", "replica"): "verl.workers.rollout.replica:RolloutReplica",
    ("gpg_verl/guards/guarded_run.py", "self.agent_loop_manager"): f"{V1}.agent_loop_tq:AgentLoopManagerTQ",
    ("gpg_verl/training/trainer.py", "workers"): "verl.single_controller.ray.base:RayWorkerGroup",
    ("gpg_verl/training/actor.py", "self.engine"): "verl.workers.engine.fsdp.transformer_impl:FSDPEngine",
    ("gpg_verl/training/passes.py", "engine"): f"{FSDP}:FSDPEngineWithLMHead",
    ("gpg_verl/training/passes.py", "self.engine"): f"{FSDP}:FSDPEngineWithLMHead",
    ("gpg_verl/guards/dropped_rows.py", "data_set"): "verl.utils.dataset.rl_dataset:RLHFDataset",
}
# What a worker group has from the worker's class.
WORKER = "verl.workers.engine_workers:ActorRolloutRefWorker"
WORKER_METHODS = {"update_actor", "compute_log_prob", "_query_dispatch_info"}

# Free-form, a node of ours, not in veRL's files but read by it, or no key but the name of a file.
NOT_VERLS = (
    "algorithm.gpg",
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class",
    "ray_kwargs.ray_init.address",
    "ray_kwargs.ray_init.num_gpus",
    "transfer_queue.backend.SimpleStorage.required_node_resource",
    "data.pt",
    "actor_rollout_ref.rollout.engine_kwargs.",
    "actor_rollout_ref.actor.megatron.override_transformer_config.",
)
# Modules whose `config` is not veRL's whole config, or that read none.
OTHER_CONFIGS = {
    *("gpg_verl/training/registry.py", "gpg_verl/training/actor.py", "gpg_verl/training/passes.py"),
    *("gpg_verl/training/images.py", "gpg_verl/training/self_check.py"),
    "gpg_verl/report/masks.py",
}

MODULES = dict(compat.files())


def listed(problems: list[str]) -> str:
    return "\nveRL changed here:\n" + "\n".join(f"  - {problem}" for problem in problems) if problems else ""


@pytest.fixture(scope="module", autouse=True)
def plugin():
    import verl  # noqa: F401


def test_verl_loads_its_plugins(tmp_path):
    """Without this seam nothing of ours would be there, and `gpg` would be veRL's own."""
    code = "import sys, verl; print('gpg_verl.plugin' in sys.modules, 'gpg_verl.launch.hooks' in sys.modules)"
    found = ["verl.__init__ does not load the entry points of the group verl.plugins: gpg_verl/plugin.py"]
    assert run_python("-c", code, cwd=tmp_path).stdout.split() == ["True", "True"], listed(found)


@pytest.mark.parametrize("path", [path for path, tree in MODULES.items() if compat.uses(tree)])
def test_what_is_imported_is_there_and_takes_our_calls(path):
    assert not (found := compat.unfit_names(path, MODULES[path])), listed(found)


@pytest.mark.parametrize("name", REPLACED)
def test_what_is_replaced_is_there_with_its_parameters(name):
    try:
        found = compat.unfit_class(compat.import_or_gone(name), REPLACED[name])
    except LookupError as error:
        found = [str(error)]
    assert not found, listed(found)


def test_every_class_on_top_of_verls_is_in_the_table():
    assert compat.derived() == set(REPLACED)


@pytest.mark.parametrize("place", SEAMS, ids=lambda place: f"{place[1]}-{place[0]}")
def test_what_is_patched_is_there_with_its_parameters(place):
    found = []
    for owner in SEAMS[place]:
        try:
            function = seam(inspect.unwrap(compat.import_or_gone(owner)), place[1], compat.seams()[place])
            assert callable(function)
        except (LookupError, RuntimeError) as error:
            found.append(f"{error}: patched by {place[0]}")
    assert not found, listed(found)


def test_every_patched_place_is_in_the_table():
    assert {place for place in compat.seams() if place[1] not in OTHERS} == set(SEAMS)


@pytest.mark.parametrize("place", OBJECTS, ids=lambda place: f"{place[1]}-{place[0]}")
def test_what_is_used_of_verls_objects_is_there(place):
    path, variable = place
    attributes = compat.attributes_of(MODULES[path], variable) - WORKER_METHODS
    assert attributes
    assert not (found := compat.unfit_object(OBJECTS[place], sorted(attributes), path)), listed(found)


def test_worker_groups_have_the_workers_methods():
    found = compat.unfit_object(WORKER, sorted(WORKER_METHODS), "gpg_verl/training/trainer.py")
    assert not found, listed(found)


def test_registries_have_the_names_that_are_replaced_or_built_on():
    from verl.plugin.platform import PlatformRegistry
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    from gpg_verl.settings import TRAINER_MODES

    found = [f"{name} has no `gpg`" for name, registry in (
        ("ADV_ESTIMATOR_REGISTRY", ADV_ESTIMATOR_REGISTRY),
        ("POLICY_LOSS_REGISTRY", POLICY_LOSS_REGISTRY),
    ) if "gpg" not in registry]  # fmt: skip
    found += [f"TRAINER_REGISTRY has no `{mode}`" for mode in TRAINER_MODES if mode not in TRAINER_REGISTRY]
    assert not found, listed(found)
    assert PlatformRegistry.get("cpu") is not None


@pytest.fixture(scope="module")
def configs():
    """veRL's default, and with Megatron, whose node takes the place of FSDP's."""
    from gpg_verl.launch.check import compose

    return [compose([]), compose(["model_engine=megatron"])]


def missing_keys(path, configs):
    missing = {}
    for key, line in compat.config_keys(path, MODULES[path]).items():
        in_each = [compat.missing_key(config, key) for config in configs]
        if None not in in_each and not key.startswith(NOT_VERLS):
            missing[max(in_each, key=len)] = line
    return [f"veRL's config has no {key}: read by {path}:{line}" for key, line in missing.items()]


@pytest.mark.parametrize("path", [path for path in MODULES if path not in OTHER_CONFIGS])
def test_config_keys_are_there(path, configs):
    assert not (found := missing_keys(path, configs)), listed(found)


def test_config_keys_are_found_in_the_source():
    keys = set().union(*(compat.config_keys(path, tree) for path, tree in MODULES.items()))
    assert {
        "actor_rollout_ref.actor.policy_loss.loss_mode",  # an f-string
        "actor_rollout_ref.rollout.temperature",  # by an attribute
        "actor_rollout_ref.actor.calculate_entropy",  # by a variable
        "trainer.v1.trainer_mode",  # a string
    } <= keys


def without_key(config):
    config = copy.deepcopy(config)
    with open_dict(config):
        del config.trainer.v1.trainer_mode
    return config


TRAINER = f"{V1}.trainer_base:PPOTrainer"


@pytest.mark.parametrize(
    ("place", "becomes", "check", "expected"),
    [
        (
            "verl.utils.tensordict_utils:assign_non_tensor",
            None,
            lambda: compat.unfit_names("gpg_verl/training/actor.py", MODULES["gpg_verl/training/actor.py"]),
            "verl.utils.tensordict_utils.assign_non_tensor is gone: used by gpg_verl/training/actor.py:",
        ),
        (
            "verl.utils.metric:reduce_metrics",
            None,
            lambda: compat.unfit_names("gpg_verl/training/trainer.py", MODULES["gpg_verl/training/trainer.py"]),
            "verl.utils.metric.reduce_metrics is gone: imported by gpg_verl/training/trainer.py:",
        ),
        (
            "transfer_queue:kv_batch_get",
            lambda keys, partition: None,
            lambda: compat.unfit_names("gpg_verl/training/trainer.py", MODULES["gpg_verl/training/trainer.py"]),
            "(keys, partition) does not take what gpg_verl/training/trainer.py:",
        ),
        (
            f"{TRAINER}._fetch_one_gen_batch",
            None,
            lambda: compat.unfit_class(compat.import_or_gone("gpg_verl.training.trainer:GPGTrainerSync"), STEP),
            "trainer_sync.PPOTrainerSync._fetch_one_gen_batch is gone: replaced by GPGTrainerSync._fetch_one_gen_batch",
        ),
        (
            f"{TRAINER}._update_actor",
            lambda self, batch, metrics, epoch: batch,
            lambda: compat.unfit_class(compat.import_or_gone("gpg_verl.training.trainer:GPGTrainerSync"), STEP),
            "(self, batch, metrics, epoch) is not what gpg_verl.training.trainer.GPGStep._update_actor(self, batch",
        ),
        (
            f"{TRAINER}._plan",
            lambda self: None,
            lambda: compat.unfit_class(compat.import_or_gone("gpg_verl.training.trainer:GPGTrainerSync"), STEP),
            "PPOTrainerSync._plan is there: GPGTrainerSync._plan replaces it, and was not meant to",
        ),
        (
            f"{TRAINER}.get_reward_handles",
            None,
            lambda: compat.unfit_class(compat.import_or_gone("gpg_verl.training.trainer:GPGTrainerSync"), STEP),
            "PPOTrainerSync has no `self.get_reward_handles` any more: read by gpg_verl/guards/guarded_run.py:",
        ),
        (
            f"{BUFFER}._clear_groups",
            None,
            lambda: compat.unfit_object(BUFFER, ["_clear_groups", "partitions"], "gpg_verl/training/replay_buffer.py"),
            "replay_buffer.ReplayBuffer._clear_groups is gone: used by gpg_verl/training/replay_buffer.py",
        ),
    ],
)
def test_a_change_is_named(place, becomes, check, expected, monkeypatch):
    """veRL doctored, and put right again."""
    before = set(check())  # nothing, in a veRL that is supported
    owner, _, name = place.rpartition(":" if "." not in place.rpartition(":")[2] else ".")
    owner = compat.import_or_gone(owner)
    if becomes is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, becomes, raising=False)
    found = set(check()) - before
    assert any(expected in line for line in found), found


def test_a_config_key_that_is_gone_is_named(configs):
    gone = [without_key(config) for config in configs]
    (found,) = missing_keys("gpg_verl/launch/check.py", gone) or missing_keys("gpg_verl/launch/settle.py", gone)
    assert found.startswith("veRL's config has no trainer.v1.trainer_mode: read by gpg_verl/launch/settle.py:")
