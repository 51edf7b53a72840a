"""Does the installed veRL still have every place that gpg_verl uses or patches? Fast, no run is started.

A type checker (mypy, with the settings in pyproject.toml) follows the names, attributes and calls of our source into
veRL's. The tables here say what it cannot see: which methods are replaced, where a patched function lives, what stands
behind a variable without a type, which config keys are veRL's. A failure lists every place that changed;
`.ci/newest-verl` runs this against the newest veRL.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from conftest import run_python
from omegaconf import DictConfig, open_dict

from gpg_verl.compat.seams import seam

ROOT = Path(__file__).parents[1]
SOURCES = {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in ROOT.glob("gpg_verl/**/*.py")}
MODULES = {path: ast.parse(text) for path, text in SOURCES.items()}
IMPORT = re.compile(r"^\s*(from|import) (verl|transfer_queue|gpg_verl\.compat\.seams import \w+Mixin)\b", re.MULTILINE)
USES_VERL = sorted(path for path, text in SOURCES.items() if IMPORT.search(text))
V1 = "verl.trainer.ppo.v1"
BUFFER = f"{V1}.replay_buffer:ReplayBuffer"
FSDP = "verl.workers.engine.fsdp.transformer_impl"
AGENTS = "verl.experimental.agent_loop.agent_loop"
TRANSFER = "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer"

# What each class of ours replaces in veRL's.
STEP = """__init__ _balance_batch _build_replay_buffer _compute_advantage _compute_old_log_prob _fetch_one_gen_batch
    _get_required_batch_multiple _init_dataloader _init_resource_pool_mgr _load_checkpoint _save_checkpoint
    _submit_batch_to_rollout _update_actor step _setup _val_metrics_update fit on_init_end on_sample_end on_step_begin
    on_step_end"""
REPLACED = {
    "gpg_verl.training.trainer:GPGTrainerSync": STEP,
    "gpg_verl.training.trainer:GPGTrainerColocateAsync": STEP,
    "gpg_verl.training.trainer:GPGTrainerSeparateAsync": STEP,
    "gpg_verl.training.actor:GPGTrainingWorker": "__init__ _postprocess_output infer_batch train_mini_batch",
    "gpg_verl.training.actor:GPGActor": "actor_worker_cls",
    "gpg_verl.training.actor:GPGDetachedActor": "actor_worker_cls",
    "gpg_verl.determinism:AgentLoopManagerSeeded": "__init__ generate_sequences",
    "gpg_verl.determinism:AgentLoopWorkerSeeded": "__init__ _run_agent_loop",
    "gpg_verl.reward_manager:TruncationRewardManager": "run_single",
    "gpg_verl.guards.rewards:RewardLoopWorkerChecked": "_init_reward_fn compute_score",
    "gpg_verl.cpu.checkpoint_engine:FilesCheckpointEngine": """build_topology finalize init_process_group prepare
        receive_weights send_weights""",
    "gpg_verl.cpu.platform:CPUPlatform": """communication_backend_name cudart current_device device_count device_module
        device_name empty_cache get_device_capability is_available is_ipc_supported is_platform_available manual_seed
        manual_seed_all nvtx_range profiler_start profiler_stop ray_noset_envvars ray_resource_name
        set_allocator_settings set_device synchronize vendor_name visible_devices_envvar""",
}

# Where each patched function lives, and the file of ours that patches it.
SEAMS = {
    "verl.utils.config": "hooks.validate_config",
    "verl.trainer.main_ppo": "exit.run_ppo",
    "verl.trainer.ppo.ray_trainer:RayPPOTrainer": "hooks.__init__",
    "verl.utils.dataset.rl_dataset:RLHFDataset": "dropped_rows.maybe_filter_out_long_prompts",
    "verl.experimental.reward_loop.reward_loop:RewardLoopWorker": "rewards.compute_score",
    BUFFER: """liveness._wait_for_next_poll replay_buffer._sync_metadata_from_transfer_queue
        replay_buffer._terminal_eviction_reasons replay_buffer._evict_terminal_groups replay_buffer._clear_groups
        replay_buffer._materialize_batch""",
    f"{V1}.replay_buffer:ReplayBufferAsync": "replay_buffer._has_enough_samples",
    f"{V1}.replay_buffer": "replay_buffer._accumulate_eviction_metrics",
    "verl.workers.engine.base:BaseEngine": "actor.lr_scheduler_step",
    f"{FSDP}:FSDPEngine": "actor.lr_scheduler_step",
    f"{FSDP}:FSDPEngineWithLMHead": """passes.prepare_model_inputs passes.prepare_model_outputs
        passes.optimizer_step""",
    FSDP: "passes.prepare_micro_batches",
    f"{AGENTS}:AgentLoopWorker": "sessions._run_agent_loop sessions._compute_score",
    f"{AGENTS}:AgentLoopBase": "sessions._cap_text_prompt_length",
    "verl.models.transformers.qwen2_vl": """passes._custom_flash_attention_forward verl_fixes._get_input_embeds
        verl_fixes.unpack_visual_output""",
    "verl.utils.distributed": "verl_patches.initialize_global_process_group_ray",
    f"{FSDP}:CPUOffloadPolicy": "verl_patches.__init__",
    f"{TRANSFER}:BucketedWeightSender": "verl_patches._init_socket verl_patches.async_send_weights",
    f"{TRANSFER}:BucketedWeightReceiver": "verl_patches._init_socket",
}
# Not veRL's: transformers and vLLM are pinned beside it, and every CPU run goes through these.
OTHERS = {
    *("verl_patches.from_pretrained", "verl_patches.get_video_processor_dict"),
    *("vllm_patches.dispatch_cpu_unquantized_gemm", "vllm_patches.compiled_random_sample"),
}

# veRL's objects behind variables without a type: class → variables, each after its module of ours.
OBJECTS = {
    BUFFER: "training/replay_buffer:buffer guards/liveness:buffer guards/guarded_run:buffer",
    f"{V1}.replay_buffer:ReplayBufferAsync": "training/replay_buffer:self.buffer",
    f"{V1}.agent_loop_tq:AgentLoopManagerTQ": "guards/guarded_run:self.agent_loop_manager",
    "verl.checkpoint_engine.base:CheckpointEngineManager": "training/replay_buffer:self.checkpoint_manager",
    "transfer_queue:KVBatchMeta": "training/trainer:batch training/trainer:part training/trainer:padding",
    "verl.workers.rollout.llm_server:LLMServerManager": "guards/guarded_run:manager",
    "verl.workers.rollout.replica:RolloutReplica": "guards/guarded_run:replica",
    "verl.single_controller.ray.base:RayWorkerGroup": "training/trainer:workers",
    f"{FSDP}:FSDPEngine": "training/actor:self.engine",
    f"{FSDP}:FSDPEngineWithLMHead": "training/passes:engine training/passes:self.engine",
    "verl.utils.dataset.rl_dataset:RLHFDataset": "guards/dropped_rows:data_set",
}
WORKER_METHODS = {
    "update_actor",
    "compute_log_prob",
    "_query_dispatch_info",
}  # a worker group has them from its workers

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
    "actor_rollout_ref.actor.veomni.",
    "actor_rollout_ref.model.override_config.",
    "reward.custom_reward_function.reward_kwargs",
)
# Modules whose `config` is not veRL's whole config, or that read none.
OTHER_CONFIGS = {
    *("gpg_verl/training/registry.py", "gpg_verl/training/actor.py", "gpg_verl/training/passes.py"),
    *("gpg_verl/training/images.py", "gpg_verl/training/self_check.py"),
    "gpg_verl/report/masks.py",
}


def changed(problems: list[str]) -> str:
    """In the form that .ci/newest-verl looks for."""
    return "\nveRL changed here:\n" + "\n".join(f"  - {problem}" for problem in problems) if problems else ""


def theirs(name: str) -> bool:
    return name.partition(".")[0] in ("verl", "transfer_queue")


def find(place: str):
    """`module` or `module:attribute`; raises LookupError saying what is gone."""
    module, _, name = place.partition(":")
    try:
        found = importlib.import_module(module)
        return inspect.unwrap(getattr(found, name)) if name else found
    except (ImportError, AttributeError) as error:
        raise LookupError(f"{place} is gone ({error})") from None


def test_verl_loads_its_plugins(tmp_path):
    """Without this seam nothing of ours would be there, and `gpg` would be veRL's own."""
    code = "import sys, verl; print('gpg_verl.plugin' in sys.modules, 'gpg_verl.launch.hooks' in sys.modules)"
    found = ["verl.__init__ does not load the entry points of the group verl.plugins: gpg_verl/plugin.py"]
    assert run_python("-c", code, cwd=tmp_path).stdout.split() == ["True", "True"], changed(found)


# ---- names, attributes and calls, by mypy


only_on_ours = pytest.mark.skipif("GPG_TRY_VERL" in os.environ, reason="proves these tests, on the supported veRL")


@pytest.fixture(scope="module")
def type_check(tmp_path_factory) -> Callable[..., list[str]]:
    """What no longer fits, one line each; `doctored`: (file of veRL's, the file that is read in its place) pairs."""
    cache = tmp_path_factory.mktemp("mypy")

    def check(*doctored: tuple[Path, Path]) -> list[str]:
        shadows = [word for pair in doctored for word in ("--shadow-file", *map(str, pair))]
        options = [f"--cache-dir={cache}", "--no-error-summary", *shadows]
        command = [sys.executable, "-m", "mypy", *options, *USES_VERL]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 or (done.returncode == 1 and done.stdout), done.stdout + done.stderr
        # A note belongs to the error above it.
        return re.sub(r"\n[^\n]*: note: ", "; ", done.stdout).splitlines()

    return check


def test_what_is_imported_read_and_called_is_there(type_check):
    assert not (found := type_check()), changed(found)


DOCTORED = {  # of veRL's files, what stands there: what it becomes
    "verl/utils/tensordict_utils.py": {"def assign_non_tensor(": "def other("},
    "verl/utils/metric/__init__.py": {"Metric, reduce_metrics": "Metric"},
    "verl/single_controller/base/decorator.py": {"\ndef register(": "\ndef other("},
    "verl/experimental/separation/engine_workers.py": {"class DetachActorWorker(": "class Other("},
    "verl/utils/seqlen_balancing.py": {"def calculate_workload(": "def calculate_workload(model, "},
    "transfer_queue/interface.py": {"str, select_fields: list[str] | str | None = None) -> TensorDict": "str)"},
    "verl/trainer/ppo/v1/trainer_base.py": {
        "def get_reward_handles(": "def other(",
        "self.train_dataset": "self.other",
        "def _fetch_one_gen_batch(": "def other(",
        "def _get_required_batch_multiple(self, dp_size: int)": "def _get_required_batch_multiple(self)",
    },
}
NAMED = (
    'actor.py:.* Module has no attribute "assign_non_tensor"',
    'trainer.py:.* Module "verl.utils.metric" has no attribute "reduce_metrics"',
    'actor.py:.* Module "verl.single_controller.base.decorator" has no attribute "register"',
    'actor.py:.* Module "verl.experimental.separation.engine_workers" has no attribute "DetachActorWorker"',
    'trainer.py:.* Missing positional argument .* in call to "calculate_workload"',
    'trainer.py:.* Unexpected keyword argument "select_fields" for "kv_batch_get"',
    'guarded_run.py:.* "GuardedRun" has no attribute "get_reward_handles"',
    'guarded_run.py:.* "GuardedRun" has no attribute "train_dataset"',
    'replay_buffer.py:.* "_fetch_one_gen_batch" undefined in superclass',
    'trainer.py:.* Too many arguments for "_get_required_batch_multiple" of "PPOTrainer"',
    'no_such.py:.* module named "verl.utils.no_such_module"',
)


@only_on_ours
def test_each_change_is_named(type_check, tmp_path, monkeypatch):
    """veRL with a module, a class, functions, methods and an attribute gone, and others that take other arguments."""
    (tmp_path / "no_such.py").write_text("from verl.utils.no_such_module import anything\n")
    monkeypatch.setattr(sys.modules[__name__], "USES_VERL", [*USES_VERL, str(tmp_path / "no_such.py")])
    shadows = []
    for number, (name, changes) in enumerate(DOCTORED.items()):
        file, doctored = Path(find("verl").__file__).parents[1] / name, tmp_path / str(number)
        text = file.read_text()
        for before, after in changes.items():
            assert before in text
            text = text.replace(before, after)
        doctored.write_text(text)
        shadows.append((file, doctored))
    found = "\n".join(type_check(*shadows))
    assert not [line for line in NAMED if not re.search(line, found)], found


# ---- classes of ours that derive from veRL's


def unfit_class(name: str) -> list[str]:
    """What a class of ours replaces in its veRL base, where that is gone, is new there, or takes other arguments."""
    cls = find(name)
    ours = [k for k in cls.__mro__ if k.__module__.partition(".")[0] == "gpg_verl"]
    verls = [k for k in cls.__mro__ if theirs(k.__module__)]
    base, expected = f"{verls[0].__module__}.{verls[0].__qualname__}", set(REPLACED[name].split())
    of_verl = {name for k in verls for name in vars(k)} - set(vars(type("Empty", (), {}))) - {"__annotations__"}
    found = {name for k in ours for name in vars(k) if name in of_verl and not name.startswith(("_abc", "__abstract"))}
    unfit = [f"{base}.{gone} is gone: replaced by {cls.__name__}.{gone}" for gone in sorted(expected - found)]
    unfit += [
        f"{base}.{new} is there: {cls.__name__}.{new} replaces it, and was not meant to"
        for new in sorted(found - expected)
    ]
    if abstract := sorted(getattr(cls, "__abstractmethods__", ())):
        unfit.append(f"{base} asks for {', '.join(abstract)}: {cls.__name__} has none")
    for method in sorted(expected & found):
        own, verls_own = (next(vars(k)[method] for k in side if method in vars(k)) for side in (ours, verls))
        if isinstance(own, property) != isinstance(verls_own, property):
            unfit.append(f"{base}.{method} is a property or no longer one: replaced by {cls.__name__}.{method}")
        elif inspect.isfunction(own) and inspect.isfunction(verls_own) and not takes_all_of(own, verls_own):
            taken = [f"{f.__module__}.{f.__qualname__}{inspect.signature(f)}" for f in (verls_own, own)]
            unfit.append(f"{taken[0]} is not what {taken[1]} replaces")
    return unfit


def takes_all_of(own: Callable, verls: Callable) -> bool:
    """Whether a method takes what another one takes, at the same positions and by the same names."""
    mine, other = (
        [p.name for p in inspect.signature(f).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        for f in (own, verls)
    )
    named = [p.name for p in inspect.signature(verls).parameters.values() if not p.kind.name.startswith("VAR_")]
    try:
        inspect.signature(own).bind(**dict.fromkeys(named))
    except TypeError:
        return False
    return mine[: len(other)] == other[: len(mine)]


@pytest.mark.parametrize("name", REPLACED)
def test_what_is_replaced_is_there_with_its_parameters(name):
    assert not (found := unfit_class(name)), changed(found)


def test_every_class_on_top_of_verls_is_in_the_table():
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in USES_VERL}
    classes = {c for name in modules for _, c in inspect.getmembers(importlib.import_module(name), inspect.isclass)}
    derived = {c for c in classes if c.__module__ in modules and any(theirs(k.__module__) for k in c.__mro__)}
    assert {f"{c.__module__}:{c.__name__}" for c in derived} == set(REPLACED)


# ---- patched places, objects, registries


def seams() -> dict[str, tuple[str, ...]]:
    """`file.name` → parameters of every place that is fetched through `seams.seam`."""
    found = {}
    for path, text in SOURCES.items():
        calls = re.findall(r'\bseam\(\s*[^,]+,\s*"(\w+)",\s*(\(.*?\)|\w+)', text, re.DOTALL)
        for table in re.findall(r"for name, parameters in (\{.*?\})\.items\(\):\s*seam\(", text, re.DOTALL):
            calls += [(name, str(("self", *parameters))) for name, parameters in ast.literal_eval(table).items()]
        for name, parameters in calls:
            if parameters.isidentifier():
                (parameters,) = re.findall(rf"\b{parameters} = (\(.*?\))", text, re.DOTALL)
            found[f"{Path(path).stem}.{name}"] = ast.literal_eval(parameters)
    return found


def unfit_seam(owner: str, place: str) -> list[str]:
    try:
        seam(find(owner), place.partition(".")[2], seams()[place])
    except (LookupError, RuntimeError) as error:
        return [f"{error}: patched by {place.partition('.')[0]}.py"]
    return []


PATCHED = [(owner, place) for owner, places in SEAMS.items() for place in places.split()]


@pytest.mark.parametrize(("owner", "place"), PATCHED)
def test_what_is_patched_is_there_with_its_parameters(owner, place):
    assert not (found := unfit_seam(owner, place)), changed(found)


def test_every_patched_place_is_in_the_table():
    calls = sum(len(re.findall(r"(?<!def )\bseam\(", text)) for text in SOURCES.values())
    assert set(seams()) - OTHERS == {place for _, place in PATCHED}
    assert calls <= len(seams())  # none that the pattern does not see


def unfit_object(owner: str, names: set[str], where: str) -> list[str]:
    """Attributes of a veRL object that ours use, which its class (`module:Class`) neither has nor sets."""
    try:
        cls = find(owner)
    except LookupError as error:
        return [f"{error}: used by {where}"]
    source = "".join(inspect.getsource(k) for k in cls.__mro__ if theirs(k.__module__))
    have = {*dir(cls), *re.findall(r"\bself\.(\w+)[^=\n()]*=[^=]", source), *re.findall(r"^    (\w+):", source, re.M)}
    return [f"{cls.__module__}.{cls.__name__}.{name} is gone: used by {where}" for name in sorted(names - have)]


@pytest.mark.parametrize(("owner", "variable"), [(k, v) for k, variables in OBJECTS.items() for v in variables.split()])
def test_what_is_used_of_verls_objects_is_there(owner, variable):
    path, name = f"gpg_verl/{variable.partition(':')[0]}.py", variable.partition(":")[2]
    nodes = [node for node in ast.walk(MODULES[path]) if isinstance(node, ast.Attribute)]
    used = {node.attr for node in nodes if ast.unparse(node.value) == name} - WORKER_METHODS
    assert used
    assert not (found := unfit_object(owner, used, path)), changed(found)


def test_worker_groups_have_the_workers_methods():
    worker = "verl.workers.engine_workers:ActorRolloutRefWorker"
    assert not (found := unfit_object(worker, WORKER_METHODS, "gpg_verl/training/trainer.py")), changed(found)


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
    assert not found, changed(found)
    assert PlatformRegistry.get("cpu") is not None


TRAINER = f"{V1}.trainer_base:PPOTrainer"
STEPS = functools.partial(unfit_class, "gpg_verl.training.trainer:GPGTrainerSync")
OBJECT = functools.partial(unfit_object, BUFFER, {"_clear_groups", "partitions"}, "replay_buffer.py")
SEAM = functools.partial(unfit_seam, BUFFER, "replay_buffer._clear_groups")


@only_on_ours
@pytest.mark.parametrize(
    ("place", "becomes", "check", "expected"),
    [
        (f"{TRAINER}._update_actor", None, STEPS, "._update_actor is gone: replaced by GPGTrainerSync._update_actor"),
        (
            f"{TRAINER}._update_actor",
            lambda self, batch, metrics, epoch: 0,
            STEPS,
            ", epoch) is not what gpg_verl.train",
        ),
        (f"{TRAINER}._update_actor", lambda self, metrics, batch: 0, STEPS, "(self, metrics, batch) is not what"),
        (f"{TRAINER}._update_actor", property(lambda self: None), STEPS, "._update_actor is a property or no longer"),
        (
            f"{TRAINER}._plan",
            lambda self: None,
            STEPS,
            "._plan is there: GPGTrainerSync._plan replaces it, and was not",
        ),
        (f"{BUFFER}._clear_groups", None, OBJECT, "ReplayBuffer._clear_groups is gone: used by replay_buffer.py"),
        (f"{BUFFER}._clear_groups", None, SEAM, "ReplayBuffer._clear_groups is gone"),
        (
            f"{BUFFER}._clear_groups",
            lambda self, uids: None,
            SEAM,
            "_clear_groups takes (self, uids), gpg_verl was writ",
        ),
    ],
)
def test_a_change_is_named(place, becomes, check, expected, monkeypatch):
    """veRL doctored, and put right again."""
    assert not check()
    owner, _, name = place.rpartition(".")
    if becomes is None:
        monkeypatch.delattr(find(owner), name)
    else:
        monkeypatch.setattr(find(owner), name, becomes, raising=False)
    assert any(expected in line for line in check()), check()


# ---- config keys


KEY = re.compile(r"(actor_rollout_ref|algorithm|critic|data|distillation|reward|trainer)(\.[a-z0-9_]+)+")


def chain(node: ast.AST, names: dict[str, str]) -> str | None:
    """The key that attributes and `.get("...")` of the config make up."""
    if (source := ast.unparse(node)) in names:
        return names[source]
    match node:
        case ast.Call(ast.Attribute(of, "get"), [ast.Constant(name), *_]) | ast.Attribute(of, name):
            before = chain(of, names)
            return None if before is None else f"{before}.{name}".lstrip(".")
    return None


def text_of(node: ast.AST, texts: dict[str, str]) -> str | None:
    match node:
        case ast.Constant(str(value)):
            return value
        case ast.FormattedValue(value):
            return text_of(value, texts)
        case ast.JoinedStr(parts):
            pieces = [text_of(part, texts) for part in parts]
            return None if None in pieces else "".join(pieces)
    return texts.get(ast.unparse(node))


def assigned(nodes: Iterable[ast.AST], names: dict[str, str], texts: dict[str, str]) -> None:
    """Adds what these assignments say to the parts of the config, and to the texts, that are known by a name."""
    for node in (node for node in nodes if isinstance(node, ast.Assign)):
        pairs = [(node.targets[0], node.value)]
        if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = zip(node.targets[0].elts, node.value.elts, strict=False)
        for target, value in pairs:
            names |= {ast.unparse(target): key} if (key := chain(value, names)) else {}
            texts |= {ast.unparse(target): text} if (text := text_of(value, texts)) else {}


@functools.cache
def constants(tree: ast.Module) -> dict[str, str]:
    """The texts that stand under a module's own names, and under those that it has from our other modules."""
    texts: dict[str, str] = {}
    for node in (node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module):
        theirs = MODULES.get(f"{node.module.replace('.', '/')}.py")
        known = constants(theirs) if theirs else {}
        texts |= {alias.name: known[alias.name] for alias in node.names if alias.name in known}
    assigned(tree.body, {}, texts)
    return texts


def config_keys(tree: ast.Module) -> dict[str, int]:
    """Key → line of what a module of ours reads of veRL's whole config: attributes of `config` or `self.config`, by
    variables too, and texts with dots, also of its tables.
    """
    keys: dict[str, int] = {}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for scope in (*functions, *(node for node in tree.body if isinstance(node, ast.Assign))):
        names, texts = {"config": "", "self.config": ""}, {**constants(tree)}
        assigned(ast.walk(scope), names, texts)
        for node in ast.walk(scope):
            key = chain(node, names) if isinstance(node, ast.Attribute | ast.Call) else None
            if key is None and isinstance(node, ast.Constant | ast.JoinedStr):
                key = text if KEY.fullmatch(text := text_of(node, texts) or "") else None
            if key:
                keys.setdefault(key, node.lineno)
    return keys


def missing_key(config: DictConfig, key: str) -> str | None:
    """The first part of a key that the config does not have; None where it has all, or ends earlier in a value."""
    node, done = config, []
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            return None
        done.append(part)
        if part not in node.keys():  # noqa: SIM118  `in` takes a value that is still to be given for missing
            return None if hasattr(DictConfig, part) else ".".join(done)
        node = node._get_node(part)
    return None


@pytest.fixture(scope="module")
def configs():
    """veRL's default, and with Megatron, whose node takes the place of FSDP's."""
    from gpg_verl.launch.check import compose

    return [compose([]), compose(["model_engine=megatron"])]


def missing_keys(path, configs):
    missing = {}
    for key, line in config_keys(MODULES[path]).items():
        in_each = [missing_key(config, key) for config in configs]
        if None not in in_each and not key.startswith(NOT_VERLS):
            missing[max(in_each, key=len)] = line
    return [f"veRL's config has no {key}: read by {path}:{line}" for key, line in missing.items()]


@pytest.mark.parametrize("path", [path for path in MODULES if path not in OTHER_CONFIGS])
def test_config_keys_are_there(path, configs):
    assert not (found := missing_keys(path, configs)), changed(found)


def test_config_keys_are_found_in_the_source():
    keys = set().union(*map(config_keys, MODULES.values()))
    assert {
        "actor_rollout_ref.actor.policy_loss.loss_mode",  # an f-string
        "actor_rollout_ref.rollout.temperature",  # by an attribute
        "actor_rollout_ref.actor.calculate_entropy",  # by a variable
        "trainer.v1.trainer_mode",  # a string
    } <= keys


def test_a_config_key_that_is_gone_is_named(configs):
    gone = copy.deepcopy(configs)
    for config in gone:
        with open_dict(config):
            del config.trainer.v1.trainer_mode
    (found,) = missing_keys("gpg_verl/launch/check.py", gone) or missing_keys("gpg_verl/launch/settle.py", gone)
    assert found.startswith("veRL's config has no trainer.v1.trainer_mode: read by gpg_verl/launch/settle.py:")
