"""What a run needs of the machine that does its work: versions, attention, memory, CPUs, disks, a login.

Each check takes the run's facts and returns one message or None. checks.py has their list.
"""

from __future__ import annotations

import configparser
import importlib.util
import math
import netrc
import os
import shutil
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse

from omegaconf import OmegaConf
from packaging.version import Version

from gpg_verl import cpu
from gpg_verl.compat import versions
from gpg_verl.guards import placement
from gpg_verl.guards.checkpoints import free_bytes, runs_elsewhere
from gpg_verl.launch.facts import Facts, ray_folder
from gpg_verl.settings import verls_mode

# Peak memory of a CPU run, fitted to what a model of 135M parameters took: Python processes, plus copies of the
# fp32 weights (trainer, gradient, two AdamW moments, vLLM with its packed copy, transfer), plus the KV cache.
CPU_BASE_BYTES = 7.5e9
CPU_FORKED_BASE_BYTES = 4e9  # where the processes share what they have imported (cpu/fork_server.py)
CPU_WEIGHT_COPIES = 8


def no_vllm(facts: Facts) -> str | None:
    """vLLM is to generate and is not there, or not in a version that is known."""
    uses_vllm = facts.get("actor_rollout_ref.rollout.name") == "vllm"
    return versions.problem(versions.requirement("vllm")) if uses_vllm else None


# ---- attention

ATTENTION = "actor_rollout_ref.model.override_config.attn_implementation"
FLASH = {  # veRL's and transformers' name for it: (module, distribution)
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
    "flash_attention_4": ("flash_attn", "flash-attn-4"),
}
# Models for whose packed rows veRL calls flash-attn by its own name, whatever attention the model is loaded with.
CALL_FLASH = ("qwen2_vl", "qwen2_5_vl", "glm4v")
KERNELS = "0.10.2"  # transformers takes flash attention from the hub by the package `kernels`, from this version
BUILD_FLASH = "pip install --no-build-isolation flash-attn==2.8.3"


def installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def has_flash(implementation: str) -> bool:
    """Whether transformers would find this flash attention, here or by the package `kernels`."""
    module, distribution = FLASH[implementation]
    version = installed(distribution)
    if version is not None and importable(module):
        return implementation != "flash_attention_2" or Version(version) >= Version("2.3.3")
    kernels = installed("kernels")
    return kernels is not None and Version(kernels) >= Version(KERNELS)


def ways_to_attention(padded: bool = False) -> str:
    """How to get attention that is there. padded: only without remove-padding is flash-attn not asked for."""
    without = f"+{ATTENTION}=sdpa" + (" actor_rollout_ref.model.use_remove_padding=False" if padded else "")
    return (
        f"by pip alone: {without}, which is as exact (GPG's updates over prefix trees have attention of their own in "
        f"any case). Or build flash-attn, with nvcc and up to an hour: {BUILD_FLASH}; veRL's docker images have it"
    )


def no_attention(facts: Facts) -> str | None:
    """The attention that FSDP's model would be loaded with is not installed: veRL's default is flash-attn's, which is
    not among the packages of veRL[vllm]. The run would fail after Ray and vLLM have started.
    """
    asked, model = _attention(facts), facts.model.get("model_type")
    if asked is None:
        return None
    if asked in FLASH and not has_flash(asked):
        default = "" if facts.get(ATTENTION) else ", veRL's default"
        ways = ways_to_attention(padded=model in CALL_FLASH)
        return f"{ATTENTION}={asked}{default}: {FLASH[asked][1]} is not installed; {ways}"
    packed = facts.get("actor_rollout_ref.model.use_remove_padding")
    if model in CALL_FLASH and packed and installed("flash-attn") is None:
        return (
            f"actor_rollout_ref.model.use_remove_padding=True: for {model} veRL calls flash-attn, which is not "
            f"installed, whatever {ATTENTION} is; {ways_to_attention(padded=True)}"
        )
    return None


def attention_to_a_part(facts: Facts) -> str | None:
    """Attention with which sequences cut into parts would see their own part only, without a message: veRL brings the
    parts together in flash attention alone (0.9.1).
    """
    asked = _attention(facts)
    for key in ("ulysses_sequence_parallel_size", "fsdp_config.ulysses_sequence_parallel_size"):
        key = f"actor_rollout_ref.actor.{key}"
        parts = facts.get(key) or 1
        if parts > 1 and asked is not None and "flash" not in asked:
            return (
                f"{key}={parts} with {ATTENTION}={asked}: veRL brings the parts of a sequence together in "
                f"flash_attention_2 only, so each would see itself alone; set {ATTENTION}=flash_attention_2, or {key}=1"
            )
    return None


def _attention(facts: Facts) -> str | None:
    """The attention that transformers is asked for; None where the model is not loaded by it."""
    if facts.get("actor_rollout_ref.actor.strategy") not in ("fsdp", "fsdp2") or facts.get("trainer.device") == "npu":
        return None
    return facts.get(ATTENTION) or "flash_attention_2"


# ---- memory, CPUs, disks


def no_cupy(facts: Facts) -> str | None:
    """cupy, by which `separate_async` sends weights from trainer to rollout, is not there."""
    key = "actor_rollout_ref.rollout.checkpoint_engine.backend"
    backend = facts.get(key)
    separate = verls_mode(facts.get("trainer.v1.trainer_mode")) == "separate_async"
    if not separate or backend not in ("nccl", "nixl", "delta") or importable("cupy"):
        return None
    return (
        f"{key}={backend}: cupy, which sends the weights, is not installed; pip install 'gpg-verl[gpu]' brings it, "
        "or pip install cupy-cuda13x (cupy-cuda12x for torch with CUDA 12)"
    )


def too_little_memory(facts: Facts) -> str | None:
    """On a CPU the kernel would kill a worker without a word. On GPUs veRL and CUDA say so themselves."""
    if facts.get("trainer.device") != "cpu":
        return None
    import psutil

    available, needed = psutil.virtual_memory().available, cpu_bytes_needed(facts)
    if available >= needed:
        return None
    return (
        f"too little memory: this run needs about {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are free; "
        "use a smaller model, or free memory"
    )


def cpu_bytes_needed(facts: Facts) -> float:
    """Peak memory of a CPU run, in bytes."""
    kv_cache = facts.get("actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes") or 0
    base = CPU_FORKED_BASE_BYTES if cpu.forks_workers(facts.config) else CPU_BASE_BYTES
    return base + CPU_WEIGHT_COPIES * 4 * sum(map(math.prod, facts.tensor_shapes)) + kv_cache


def small_weight_bucket(facts: Facts) -> str | None:
    """On a CPU a bucket of shared memory would be too small in the first weight sync."""
    key = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
    largest = max((math.prod(shape) * 4 for shape in facts.tensor_shapes), default=0)
    if facts.get("trainer.device") != "cpu" or largest <= facts.get(key) << 20:
        return None
    return (
        f"{key}={facts.get(key)}: the model's largest tensor has {largest / 2**20:.0f} MB in fp32 and must fit; "
        f"set {key}={math.ceil(largest / 2**20)} or more"
    )


def too_few_cpus(facts: Facts) -> str | None:
    """Of the Ray that the run would start. One that it joins is asked once it has joined (guards/placement.py)."""
    if facts.remote_cluster:
        return None
    key = "ray_kwargs.ray_init.num_cpus"
    given = facts.get(key)
    has = placement.local_cpus() if given is None else given
    return placement.too_few_cpus(
        facts.config, has, f"{key}={given}" if given is not None else "the CPUs of this machine"
    )


def full_disk(facts: Facts) -> str | None:
    """Too little room for the first checkpoint, which would end the run hours later. Counted are the weights of a local
    model and AdamW's two moments of them; adapters save less, and several machines may have disks of their own.
    """
    config = facts.config
    actor, trainer, model = config.actor_rollout_ref.actor, config.trainer, config.actor_rollout_ref.model
    adapters = model.get("lora_rank") or OmegaConf.select(model, "lora.rank") or model.get("lora_adapter_path")
    if trainer.save_freq <= 0 or trainer.nnodes > 1 or runs_elsewhere(config) or adapters:
        return None
    if actor.strategy not in ("fsdp", "fsdp2"):
        return None
    contents = actor.checkpoint.save_contents
    width = 4 if actor.fsdp_config.model_dtype in ("fp32", "float32") else 2
    copies = ("model" in contents) + 2 * ("optimizer" in contents and actor.optim.optimizer == "AdamW")
    needed = copies * width * sum(map(math.prod, facts.tensor_shapes))
    directory = Path(trainer.default_local_dir)
    if (free := free_bytes(directory)) >= needed:
        return None
    return (
        f"trainer.default_local_dir={directory}: a checkpoint takes {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are "
        "free; make room, or save elsewhere"
    )


RAY_REFUSES = 0.95  # Ray keeps no object on a disk that is fuller (its local_fs_capacity_threshold, Ray 2.60)
RAY_NEEDS = 1e9  # bytes for its logs, and the environments of its processes


def disk_of(folder: Path):
    """(total, used, free) bytes of the disk where `folder` is or would be made."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists()))


def full_ray_disk(facts: Facts) -> str | None:
    """Ray's logs and sockets would find no room."""
    folder, disk = ray_folder(), disk_of(ray_folder())
    if facts.remote_cluster or disk.free >= RAY_NEEDS:
        return None
    return (
        f"{folder}, where Ray writes: {disk.free / 1e9:.2f} GB are free, and it needs {RAY_NEEDS / 1e9:.0f}; make "
        "room, or set RAY_TMPDIR=/another/disk"
    )


def nearly_full_ray_disk(facts: Facts) -> str | None:
    """Ray spills objects that its memory has no room for to this disk, and fails where it is nearly full."""
    folder, disk = ray_folder(), disk_of(ray_folder())
    if facts.remote_cluster or disk.used / disk.total <= RAY_REFUSES or disk.free < RAY_NEEDS:
        return None
    return (
        f"{folder}, where Ray writes: the disk is {disk.used / disk.total:.0%} full, and Ray keeps no object on one "
        f"that is fuller than {RAY_REFUSES:.0%}; make room, or set RAY_TMPDIR=/another/disk"
    )


# ---- loggers

LOGGERS = {  # veRL's name of those that need a package: its module
    **{name: name for name in ("wandb", "mlflow", "swanlab", "tensorboard", "clearml", "trackio")},
    "vemlp_wandb": "volcengine_ml_platform",
    "tracking": "wandb",
}


def loggers_of(facts: Facts) -> list[str]:
    named = facts.get("trainer.logger")
    return [named] if isinstance(named, str) else list(named or [])


def no_logger_package(facts: Facts) -> str | None:
    missing = [name for name in loggers_of(facts) if name in LOGGERS and not importable(LOGGERS[name])]
    return f"trainer.logger={missing[0]}: pip install {LOGGERS[missing[0]]}, or leave it out" if missing else None


def no_wandb_login(facts: Facts) -> str | None:
    """wandb asks for a login when the models are up, and ends a run that nobody answers for."""
    if "wandb" not in loggers_of(facts) or not importable("wandb"):
        return None
    variables = {**os.environ, **(facts.get("ray_kwargs.ray_init.runtime_env.env_vars") or {})}
    settings = configparser.ConfigParser()
    settings.read("wandb/settings")  # what `wandb offline` writes
    mode = variables.get("WANDB_MODE") or settings.get("default", "mode", fallback="online")
    if mode in ("offline", "disabled", "dryrun") or variables.get("WANDB_API_KEY"):
        return None
    host = urlparse(variables.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        if host in netrc.netrc(variables.get("NETRC") or os.path.expanduser("~/.netrc")).hosts:
            return None
    except (OSError, netrc.NetrcParseError):
        pass
    return (
        f"trainer.logger has wandb, and nobody is logged in to {host} here (no WANDB_API_KEY, none in ~/.netrc): the "
        "run would end once its models are up; wandb login, WANDB_MODE=offline, or trainer.logger=[console,file]"
    )
