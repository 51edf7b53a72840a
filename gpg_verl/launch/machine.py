"""What a run needs of the machine: versions, memory, disk. Each function returns what is wrong."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from gpg_verl.compat import versions
from gpg_verl.guards.checkpoints import free_bytes, runs_elsewhere

# Peak memory of a CPU run, fitted to what a model of 135M parameters took: Python processes, plus copies of the
# fp32 weights (trainer, gradient, two AdamW moments, vLLM with its packed copy, transfer), plus the KV cache.
CPU_BASE_BYTES = 7.5e9
CPU_WEIGHT_COPIES = 8


def version_problems(config: DictConfig) -> list[str]:
    """What a run with this config cannot start with: a wrong Python or veRL, no vLLM where vLLM generates."""
    wrong = [versions.unsupported()]
    rollout = config.actor_rollout_ref.rollout
    if not OmegaConf.is_missing(rollout, "name") and rollout.name == "vllm":
        wrong += [versions.problem(package) for package in versions.PACKAGES if package.name == "vllm"]
    return [problem for problem in wrong if problem]


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
            f"too little memory: this run needs about {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are free; "
            "use a smaller model, or free memory"
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
    return CPU_BASE_BYTES + CPU_WEIGHT_COPIES * 4 * sum(map(math.prod, shapes)) + kv_cache


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
    folder = Path(os.path.expanduser(OmegaConf.select(config, "actor_rollout_ref.model.path") or ""))
    shapes = []
    for file in folder.glob("*.safetensors") if folder.is_dir() else []:
        with file.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(length))
        shapes += [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    return shapes
