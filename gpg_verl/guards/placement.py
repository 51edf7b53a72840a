"""Whether Ray will ever have the CPUs that a run asks it for, and what a run waits for that it has not.

veRL's storage units and placement groups (0.9.1) wait for CPUs without a limit and without a word. The sum is known
before Ray starts (`too_few_cpus`); a Ray that is joined is asked before anything is started (`cannot_place`); what
waits all the same, because another run has the CPUs, is told once a minute (`report_waits`).
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

CPUS_A_GPU = 3  # of a pool of workers: one for each process that may share the GPU (ResourcePoolManager)
CPUS_A_ROLLOUT_GPU = 2  # of a rollout with GPUs of its own (RolloutReplica.init_standalone)
PATIENCE = 60.0  # seconds
UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"


class Request(NamedTuple):
    """CPUs that a part of the run reserves, in bundles that each have to fit a node."""

    what: str
    bundles: int
    cpus: int  # of each
    gpus: int = 0


def requests(config: DictConfig) -> list[Request]:
    """What a run reserves; its other processes reserve none."""
    found = [Request("the controller of TransferQueue", 1, 1)]
    if units := _units(config):
        found.append(Request(f"{UNITS}={units}", units, 1))
    pools = [("trainer", "trainer", CPUS_A_GPU)]
    if OmegaConf.select(config, "reward.reward_model.enable_resource_pool"):
        pools.append(("reward model", "reward.reward_model", CPUS_A_GPU))
    if OmegaConf.select(config, "distillation.enabled"):
        pools.append(("teacher", "distillation", CPUS_A_GPU))
    if OmegaConf.select(config, "actor_rollout_ref.rollout.nnodes"):
        pools.append(("rollout", "actor_rollout_ref.rollout", CPUS_A_ROLLOUT_GPU))
    for what, key, cpus in pools:
        nodes, gpus = (OmegaConf.select(config, f"{key}.{name}") for name in ("nnodes", "n_gpus_per_node"))
        found.append(Request(f"{cpus} for each of {nodes * gpus} GPUs of the {what}", nodes, cpus * gpus, gpus))
    return found


def _units(config: DictConfig) -> int:
    backend = config.transfer_queue.backend
    return backend.SimpleStorage.num_data_storage_units if backend.storage_backend == "SimpleStorage" else 0


def too_few_cpus(config: DictConfig, has: float, where: str) -> str | None:
    """What to change where a run asks for more CPUs than Ray has; `where` says what `has` was read from."""
    asked = requests(config)
    if (needed := sum(request.bundles * request.cpus for request in asked)) <= has:
        return None
    parts = ", ".join(f"{request.bundles * request.cpus} ({request.what})" for request in asked)
    fewer = f", or {UNITS}=1, which is enough for one node" if _units(config) > 1 else ""
    return (
        f"too few CPUs for Ray: the run reserves {needed}, namely {parts}, and there are {has:g} ({where}), so "
        f"it would wait for ever; set ray_kwargs.ray_init.num_cpus={needed} where the run starts Ray (a count, no "
        f"cores are bound), or `ray start --num-cpus`{fewer}"
    )


def local_cpus() -> float:
    """What Ray counts on this machine, where it is not told."""
    from ray._private.utils import get_num_cpus

    return get_num_cpus()


def cannot_place(config: DictConfig) -> str | None:
    """Why the Ray that this process has joined will never have room for the run; None where it may."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    cpus = [node["Resources"].get("CPU", 0) for node in nodes]
    if message := too_few_cpus(config, sum(cpus), f"Ray's {len(nodes)} nodes"):
        return message
    anywhere = config.transfer_queue.backend.SimpleStorage.get("required_node_resource") is None
    if anywhere and min(cpus) < math.ceil(_units(config) / len(nodes)):
        address = nodes[cpus.index(min(cpus))]["NodeManagerAddress"]
        return (
            f"too few CPUs for Ray: {UNITS}={_units(config)} are spread over all {len(nodes)} nodes, and the one at "
            f"{address} has {min(cpus):g} CPUs: set `ray start --num-cpus` there, or "
            "+transfer_queue.backend.SimpleStorage.required_node_resource to a resource that only other nodes have"
        )
    for request in (request for request in requests(config) if request.gpus):
        gpus = [max(node["Resources"].get("GPU", 0), node["Resources"].get("NPU", 0)) for node in nodes]
        room = sum(int(min(c // request.cpus, g // request.gpus)) for c, g in zip(cpus, gpus, strict=True))
        if room < request.bundles <= sum(int(g // request.gpus) for g in gpus):  # too few GPUs: veRL says so
            return (
                f"too few CPUs for Ray: {request.what} are reserved as {request.cpus} on each of {request.bundles} "
                f"nodes, and Ray's nodes have {', '.join(f'{c:g}' for c in cpus)}; set `ray start --num-cpus` there"
            )
    return None


@contextlib.contextmanager
def report_waits(patience: float = PATIENCE) -> Iterator[None]:
    """While it lasts, what of this process's run waits for room in Ray is printed, each `patience` seconds."""
    ended = threading.Event()

    def watch() -> None:
        before: dict[str, str] = {}
        while not ended.wait(patience):
            with contextlib.suppress(Exception):  # Ray is not up yet, has ended, or is reached by a client
                now = waiting()
                if lines := "; ".join(what for key, what in now.items() if key in before):
                    print(f"gpg_verl: Ray has had no room for {patience:g} s for {lines}. {room()}", flush=True)
                before = now

    thread = threading.Thread(target=watch, name="report_waits", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def waiting() -> dict[str, str]:
    """What of this job Ray has found no place for, by its id."""
    import ray
    from ray._private.state import actors

    job = ray.get_runtime_context().get_job_id()
    found = {}
    for key, group in ray.util.placement_group_table().items():
        if group["state"] in ("PENDING", "RESCHEDULING") and key.endswith(job):
            bundles = [dict(bundle) for bundle in group["bundles"].values()]
            found[key] = f"the placement group {group['name']} of {len(bundles)} × {bundles[0]}"
    for key, actor in actors().items():
        if actor["State"] == "PENDING_CREATION" and actor["JobID"] == job and not actor["Address"]["IPAddress"]:
            found[key] = f"the actor {actor['Name'] or actor['ActorClassName']}"
    return found


def room() -> str:
    """What Ray has, and has free, in words."""
    import ray

    has, free = ray.cluster_resources(), ray.available_resources()
    parts = [f"{free.get(name, 0):g} of {has[name]:g} {name}s" for name in ("CPU", "GPU", "NPU") if name in has]
    return f"Free are {' and '.join(parts)}: another run may have them; `ray status` lists who asks for what"
