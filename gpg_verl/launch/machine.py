"""What a run needs of the machine that does its work: versions, attention, memory, CPUs, disks, a login.

Each check takes the run's facts and yields its messages, as in checks.py.
"""

from __future__ import annotations

import configparser
import importlib.util
import math
import netrc
import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse

from gpg_verl import cpu
from gpg_verl.compat import versions
from gpg_verl.compat.versions import LocalProblem
from gpg_verl.guards import placement
from gpg_verl.guards.checkpoints import free_bytes, runs_elsewhere
from gpg_verl.guards.run_folder import saves
from gpg_verl.launch.facts import Advice, Facts, ray_folder
from gpg_verl.launch.settle import ACTOR, ROLLOUT
from gpg_verl.settings import verls_mode

# Peak memory of a CPU run, fitted to what a model of 135M parameters took: Python processes, plus copies of the
# fp32 weights (trainer, gradient, two AdamW moments, vLLM with its packed copy, transfer), plus the KV cache.
CPU_BASE_BYTES = 7.5e9
CPU_FORKED_BASE_BYTES = 4e9  # where the processes share what they have imported (cpu/fork_server.py)
CPU_WEIGHT_COPIES = 8

ATTENTION = "actor_rollout_ref.model.override_config.attn_implementation"
PACKED = "actor_rollout_ref.model.use_remove_padding"
# veRL's and transformers' name for it: its distribution
FLASH = {"flash_attention_2": "flash-attn", **{f"flash_attention_{n}": f"flash-attn-{n}" for n in (3, 4)}}
# Models for whose packed rows veRL calls flash-attn by its own name, whatever attention the model is loaded with.
CALL_FLASH = ("qwen2_vl", "qwen2_5_vl", "glm4v")
PARTS = (f"{ACTOR}.ulysses_sequence_parallel_size", f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size")


def installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def has_flash(implementation: str) -> bool:
    """Whether transformers would find this flash attention, here or in the hub by the package `kernels`."""
    return bool(installed(FLASH[implementation]) or installed("kernels"))


def ways_to_attention(padded: bool = False) -> str:
    """How to get attention that is there. padded: only without remove-padding is flash-attn not asked for."""
    return (
        f"by pip alone: +{ATTENTION}=sdpa{f' {PACKED}=False' if padded else ''}, which is as exact (GPG's updates over "
        "prefix trees have attention of their own in any case). Or build flash-attn, with nvcc and up to an hour: pip "
        "install --no-build-isolation flash-attn==2.8.3; veRL's docker images have it"
    )


def attention(facts: Facts) -> Iterator[str]:
    """The attention that FSDP's model is loaded with. veRL's default is flash-attn's, which is not among the packages
    of veRL[vllm]: the run would fail after Ray and vLLM have started. And veRL brings sequences that are cut into parts
    together in flash attention alone (0.9.1).
    """
    if facts.get(f"{ACTOR}.strategy") not in ("fsdp", "fsdp2") or facts.get("trainer.device") == "npu":
        return  # not loaded by transformers
    asked, kind = facts.get(ATTENTION) or "flash_attention_2", facts.model.get("model_type")
    ways = ways_to_attention(padded=kind in CALL_FLASH)
    if asked in FLASH and not has_flash(asked):
        default = "" if facts.get(ATTENTION) else ", veRL's default"
        yield LocalProblem(f"{ATTENTION}={asked}{default}: {FLASH[asked]} is not installed; {ways}")
    elif kind in CALL_FLASH and facts.get(PACKED) and installed("flash-attn") is None:
        yield LocalProblem(
            f"{PACKED}=True: for {kind} veRL calls flash-attn, which is not installed, whatever {ATTENTION} is; {ways}"
        )
    for key in PARTS:
        if (parts := facts.get(key) or 1) > 1 and "flash" not in asked:
            yield (
                f"{key}={parts} with {ATTENTION}={asked}: veRL brings the parts of a sequence together in "
                f"flash_attention_2 only, so each would see itself alone; set {ATTENTION}=flash_attention_2, or {key}=1"
            )


def packages(facts: Facts) -> Iterator[str]:
    """vLLM, and cupy, by which `separate_async` sends weights from trainer to rollout."""
    vllm, key = versions.problem(versions.requirement("vllm")), f"{ROLLOUT}.checkpoint_engine.backend"
    if facts.get(f"{ROLLOUT}.name") == "vllm" and vllm is not None:
        yield LocalProblem(vllm)
    separate = verls_mode(facts.get("trainer.v1.trainer_mode")) == "separate_async"
    if separate and facts.get(key) in ("nccl", "nixl", "delta") and not importable("cupy"):
        yield LocalProblem(
            f"{key}={facts.get(key)}: cupy, which sends the weights, is not installed; pip install 'gpg-verl[gpu]' "
            "brings it, or pip install cupy-cuda13x (cupy-cuda12x for torch with CUDA 12)"
        )


def memory(facts: Facts) -> Iterator[str]:
    """On a CPU the kernel would kill a worker without a word, and a bucket of shared memory would be too small in the
    first weight sync. On GPUs veRL and CUDA say so themselves.
    """
    if facts.get("trainer.device") != "cpu":
        return
    import psutil

    available, needed = psutil.virtual_memory().available, cpu_bytes_needed(facts)
    if available < needed:
        yield LocalProblem(
            f"too little memory: this run needs about {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are free; "
            "use a smaller model, or free memory"
        )
    key = f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes"
    largest = max((math.prod(shape) * 4 for shape in facts.tensor_shapes), default=0)
    if largest > facts.get(key) << 20:
        yield (
            f"{key}={facts.get(key)}: the model's largest tensor has {largest / 2**20:.0f} MB in fp32 and must fit; "
            f"set {key}={math.ceil(largest / 2**20)} or more"
        )


def cpu_bytes_needed(facts: Facts) -> float:
    """Peak memory of a CPU run, in bytes."""
    kv_cache = facts.get(f"{ROLLOUT}.engine_kwargs.vllm.kv_cache_memory_bytes") or 0
    base = CPU_FORKED_BASE_BYTES if cpu.forks_workers(facts.config) else CPU_BASE_BYTES
    return base + CPU_WEIGHT_COPIES * 4 * sum(map(math.prod, facts.tensor_shapes)) + kv_cache


def cpus(facts: Facts) -> Iterator[str]:
    """Of the Ray that the run would start. One that it joins is asked once it has joined (guards/placement.py)."""
    key = "ray_kwargs.ray_init.num_cpus"
    has, where = facts.get(key), f"{key}={facts.get(key)}"
    if has is None:
        has, where = placement.local_cpus(), "the CPUs of this machine"
    if facts.remote_cluster is None and (message := placement.too_few_cpus(facts.config, has, where)):
        yield LocalProblem(message)


RAY_REFUSES = 0.95  # Ray keeps no object on a disk that is fuller (its local_fs_capacity_threshold, Ray 2.60)
RAY_NEEDS = 1e9  # bytes for its logs, and the environments of its processes


def disks(facts: Facts) -> Iterator[str]:
    """Too little room for the first checkpoint, which would end the run hours later, or for Ray: its logs and sockets,
    and the objects that its memory has no room for.
    """
    if needed := checkpoint_bytes(facts):
        directory = Path(facts.config.trainer.default_local_dir)
        if (free := free_bytes(directory)) < needed:
            yield LocalProblem(
                f"trainer.default_local_dir={directory}: a checkpoint takes {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB "
                "are free; make room, or save elsewhere"
            )
    if facts.remote_cluster:
        return
    folder = ray_folder()
    disk = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists()))
    another = "make room, or set RAY_TMPDIR=/another/disk"
    if disk.free < RAY_NEEDS:
        needs = f"{disk.free / 1e9:.2f} GB are free, and it needs {RAY_NEEDS / 1e9:.0f}"
        yield LocalProblem(f"{folder}, where Ray writes: {needs}; {another}")
    elif disk.used / disk.total > RAY_REFUSES:
        yield Advice(
            f"{folder}, where Ray writes: the disk is {disk.used / disk.total:.0%} full, and Ray keeps no object on "
            f"one that is fuller than {RAY_REFUSES:.0%}; {another}"
        )


def checkpoint_bytes(facts: Facts) -> float:
    """Of the weights of a local model and AdamW's two moments of them; 0 where that is not known or not all of it:
    adapters save less, and several machines may have disks of their own.
    """
    actor, several = facts.config.actor_rollout_ref.actor, facts.config.trainer.nnodes > 1
    adapters = (f"actor_rollout_ref.model.{key}" for key in ("lora_rank", "lora.rank", "lora_adapter_path"))
    if several or not saves(facts.config) or runs_elsewhere(facts.config) or any(map(facts.get, adapters)):
        return 0
    contents = actor.checkpoint.save_contents if actor.strategy in ("fsdp", "fsdp2") else ()
    copies = ("model" in contents) + 2 * ("optimizer" in contents and actor.optim.optimizer == "AdamW")
    width = 4 if copies and actor.fsdp_config.model_dtype in ("fp32", "float32") else 2
    return copies * width * sum(map(math.prod, facts.tensor_shapes))


# ---- loggers

# veRL's loggers that are packages of the same name, and older names of two of them.
LOGGERS = {name: name for name in ("wandb", "mlflow", "swanlab", "tensorboard", "clearml", "trackio")}
LOGGERS |= {"vemlp_wandb": "volcengine_ml_platform", "tracking": "wandb"}


def loggers(facts: Facts) -> Iterator[str]:
    """One that veRL does not know, that is not installed, or that asks for a login when the models are up, and ends a
    run that nobody answers for.
    """
    from verl.utils.tracking import Tracking

    named = facts.get("trainer.logger")
    for name in [named] if isinstance(named, str) else list(named or []):
        if name not in (*Tracking.supported_backend, *LOGGERS):
            yield f"trainer.logger={name}: known are {', '.join(Tracking.supported_backend)}"
        elif name in LOGGERS and not importable(LOGGERS[name]):
            yield LocalProblem(f"trainer.logger={name}: pip install {LOGGERS[name]}, or leave it out")
        elif name == "wandb" and (host := _no_login(facts)):
            yield LocalProblem(
                f"trainer.logger has wandb, and nobody is logged in to {host} here (no WANDB_API_KEY, none in "
                "~/.netrc): the run would end once its models are up; wandb login, WANDB_MODE=offline, or "
                "trainer.logger=[console,file]"
            )


def _no_login(facts: Facts) -> str | None:
    """The host that wandb would ask for a login to; None where it would not ask."""
    variables = {**os.environ, **(facts.get("ray_kwargs.ray_init.runtime_env.env_vars") or {})}
    (settings := configparser.ConfigParser()).read("wandb/settings")  # what `wandb offline` writes
    mode = variables.get("WANDB_MODE") or settings.get("default", "mode", fallback="online")
    host = urlparse(variables.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        known = netrc.netrc(variables.get("NETRC") or os.path.expanduser("~/.netrc")).hosts
    except (OSError, netrc.NetrcParseError):
        known = {}
    offline = mode in ("offline", "disabled", "dryrun")
    return None if offline or variables.get("WANDB_API_KEY") or host in known else host
