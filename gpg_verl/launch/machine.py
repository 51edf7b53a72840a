"""What a run needs of the machine: versions, attention, memory, disk. Each function returns what is wrong."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import socket
import struct
from importlib import metadata
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from packaging.version import Version

from gpg_verl import cpu
from gpg_verl.compat import versions
from gpg_verl.compat.versions import LocalProblem
from gpg_verl.guards.checkpoints import free_bytes, named_ray, runs_elsewhere
from gpg_verl.launch.inputs import model_config, model_folder
from gpg_verl.settings import verls_mode

# Peak memory of a CPU run, fitted to what a model of 135M parameters took: Python processes, plus copies of the
# fp32 weights (trainer, gradient, two AdamW moments, vLLM with its packed copy, transfer), plus the KV cache.
CPU_BASE_BYTES = 7.5e9
CPU_FORKED_BASE_BYTES = 4e9  # where the processes share what they have imported (cpu/fork_server.py)
CPU_WEIGHT_COPIES = 8


WORK_ELSEWHERE = "GPG_WORK_ELSEWHERE"


def elsewhere(config: DictConfig | None = None) -> str | None:
    """Why what this machine lacks says nothing about a run: its work is done on others. None where it is done here.

    A Ray that is named is one elsewhere; one that `ray start` left running here is joined too, and its workers may be
    on other nodes. `GPG_WORK_ELSEWHERE=1` says so where neither shows it, 0 that the work is done here all the same.
    """
    said = os.environ.get(WORK_ELSEWHERE)
    if said is not None:
        return f"{WORK_ELSEWHERE}={said}" if said not in ("", "0") else None
    address = named_ray(config)
    if address == "local":
        return None
    if address:
        return f"the run goes to the Ray at {address}"
    return f"the run joins the Ray that runs at {address}" if (address := _running_ray()) else None


def _running_ray() -> str | None:
    """The address of the Ray that `ray start` has left running on this machine, which `ray.init` would join."""
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray/ray_current_cluster")
    try:
        address = file.read_text(encoding="utf-8").strip()
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=1).close()
    except (OSError, ValueError):
        return None
    return address


def parted(problems: list[str], place: str | None) -> tuple[list[str], list[str]]:
    """(what stops a run, lines about what does not): a run whose work is done on other machines, for the reason
    `place`, does not stop for what this one lacks.
    """
    if place is None:
        return problems, []
    lacking = [problem for problem in problems if isinstance(problem, LocalProblem)]
    told = [f"gpg_verl: not on this machine, and {place}, so its nodes need it: {problem}" for problem in lacking]
    return [problem for problem in problems if problem not in lacking], told


def way_past(problems: list[str]) -> str:
    """A line for what only this machine lacks."""
    if not any(isinstance(problem, LocalProblem) for problem in problems):
        return ""
    return f"  ({WORK_ELSEWHERE}=1 where other machines do the work: what only this one lacks is then told)\n"


def version_problems(config: DictConfig) -> list[str]:
    """What a run with this config cannot start with: a wrong Python or veRL, no vLLM where vLLM generates."""
    wrong = [versions.unsupported()]
    rollout = config.actor_rollout_ref.rollout
    if not OmegaConf.is_missing(rollout, "name") and rollout.name == "vllm":
        missing = [versions.problem(package) for package in versions.PACKAGES if package.name == "vllm"]
        wrong += [LocalProblem(problem) for problem in missing if problem]
    return [problem for problem in wrong if problem]


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


def attention_problems(config: DictConfig) -> list[str]:
    """The attention that FSDP's model would be loaded with and that is not installed: veRL's default is flash-attn's,
    which is not among the packages of veRL[vllm]. The run would fail after Ray and vLLM have started.
    """
    asked, model = _attention(config), model_config(config).get("model_type")
    if asked is None:
        return []
    if asked in FLASH and not has_flash(asked):
        name = FLASH[asked][1]
        default = "" if OmegaConf.select(config, ATTENTION) else ", veRL's default"
        ways = ways_to_attention(padded=model in CALL_FLASH)
        return [LocalProblem(f"{ATTENTION}={asked}{default}: {name} is not installed; {ways}")]
    packed = OmegaConf.select(config, "actor_rollout_ref.model.use_remove_padding")
    if model in CALL_FLASH and packed and installed("flash-attn") is None:
        return [
            LocalProblem(
                f"actor_rollout_ref.model.use_remove_padding=True: for {model} veRL calls flash-attn, which is "
                f"not installed, whatever {ATTENTION} is; {ways_to_attention(padded=True)}"
            )
        ]
    return []


def attention_contradictions(config: DictConfig) -> list[str]:
    """Attention with which sequences cut into parts would see their own part only, without a message: veRL brings the
    parts together in flash attention alone (0.9.1).
    """
    asked = _attention(config)
    for key in ("ulysses_sequence_parallel_size", "fsdp_config.ulysses_sequence_parallel_size"):
        key = f"actor_rollout_ref.actor.{key}"
        parts = OmegaConf.select(config, key) or 1
        if parts > 1 and asked is not None and "flash" not in asked:
            return [
                f"{key}={parts} with {ATTENTION}={asked}: veRL brings the parts of a sequence together in "
                f"flash_attention_2 only, so each would see itself alone; set {ATTENTION}=flash_attention_2, or {key}=1"
            ]
    return []


def _attention(config: DictConfig) -> str | None:
    """The attention that transformers is asked for; None where the model is not loaded by it."""
    if (
        config.actor_rollout_ref.actor.strategy not in ("fsdp", "fsdp2")
        or OmegaConf.select(config, "trainer.device") == "npu"
    ):
        return None
    return OmegaConf.select(config, ATTENTION) or "flash_attention_2"


# ---- the rest


def sync_problems(config: DictConfig) -> list[str]:
    """cupy, by which `separate_async` sends weights from trainer to rollout, is not there."""
    if verls_mode(config.trainer.v1.trainer_mode) != "separate_async":
        return []
    key = "actor_rollout_ref.rollout.checkpoint_engine.backend"
    backend = OmegaConf.select(config, key)
    if backend not in ("nccl", "nixl", "delta") or importable("cupy"):
        return []
    return [
        LocalProblem(
            f"{key}={backend}: cupy, which sends the weights, is not installed; pip install 'gpg-verl[gpu]' brings it, "
            "or pip install cupy-cuda13x (cupy-cuda12x for torch with CUDA 12)"
        )
    ]


def dummy_loading_is_safe(config: DictConfig) -> bool:
    """Whether veRL's dummy loading leaves nothing random that no weight sync brings: known of vLLM before 0.28, whose
    models of images have no such buffers.
    """
    rollout = config.actor_rollout_ref.rollout
    if OmegaConf.is_missing(rollout, "name") or rollout.name != "vllm" or elsewhere(config):
        return False
    (vllm,) = (versions.found(package) for package in versions.PACKAGES if package.name == "vllm")
    return vllm is not None and Version(vllm[1]) < Version("0.28")


def memory_problems(config: DictConfig) -> list[str]:
    """What a CPU run has too little memory for, where the kernel would kill a worker without a word, or a weight bucket
    of shared memory would be too small in the first sync. On GPUs veRL and CUDA say so themselves.
    """
    if OmegaConf.select(config, "trainer.device") != "cpu":
        return []
    import psutil

    problems = []
    shapes = _shapes(config)
    available, needed = psutil.virtual_memory().available, cpu_bytes_needed(config, shapes)
    if available < needed:
        problems.append(
            LocalProblem(
                f"too little memory: this run needs about {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are free; "
                "use a smaller model, or free memory"
            )
        )
    key = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
    largest = max((math.prod(shape) * 4 for shape in shapes), default=0)
    if largest > OmegaConf.select(config, key) << 20:
        problems.append(
            f"{key}={OmegaConf.select(config, key)}: the model's largest tensor has {largest / 2**20:.0f} MB in fp32 "
            f"and must fit; set {key}={math.ceil(largest / 2**20)} or more"
        )
    return problems


def cpu_bytes_needed(config: DictConfig, shapes: list[list[int]]) -> float:
    """Peak memory of a CPU run, in bytes."""
    kv_cache = OmegaConf.select(config, "actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes") or 0
    base = CPU_FORKED_BASE_BYTES if cpu.forks_workers(config) else CPU_BASE_BYTES
    return base + CPU_WEIGHT_COPIES * 4 * sum(map(math.prod, shapes)) + kv_cache


def disk_problems(config: DictConfig) -> list[str]:
    """Too little room for the first checkpoint, which would end the run hours later. Counted are the weights of a local
    model and AdamW's two moments of them; adapters save less, and several machines may have disks of their own.
    """
    actor, trainer = config.actor_rollout_ref.actor, config.trainer
    model = config.actor_rollout_ref.model
    adapters = model.get("lora_rank") or OmegaConf.select(model, "lora.rank") or model.get("lora_adapter_path")
    if trainer.save_freq <= 0 or trainer.nnodes > 1 or runs_elsewhere(config) or adapters:
        return []
    if actor.strategy not in ("fsdp", "fsdp2"):
        return []
    contents = actor.checkpoint.save_contents
    width = 4 if actor.fsdp_config.model_dtype in ("fp32", "float32") else 2
    copies = ("model" in contents) + 2 * ("optimizer" in contents and actor.optim.optimizer == "AdamW")
    needed = copies * width * sum(map(math.prod, _shapes(config)))
    directory = Path(trainer.default_local_dir)
    if (free := free_bytes(directory)) < needed:
        return [
            f"trainer.default_local_dir={directory}: a checkpoint takes {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are "
            "free; make room, or save elsewhere"
        ]
    return []


def _shapes(config: DictConfig) -> list[list[int]]:
    """The shapes of a local safetensors checkpoint, from the files' headers; none where there is no such folder."""
    folder, shapes = model_folder(config), []
    for file in folder.glob("*.safetensors") if folder.is_dir() else []:
        with file.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(length))
        shapes += [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    return shapes
