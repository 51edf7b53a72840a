"""veRL's platform interface for a machine without an accelerator."""

from __future__ import annotations

import resource
import types
from contextlib import contextmanager

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

from gpg_verl.cpu import chosen


class _CPUIndex(str):
    """veRL uses the current device both as `.to(device)` and inside f"cpu:{device}"; this serves both."""

    def __new__(cls):
        return super().__new__(cls, "cpu")

    def __format__(self, spec: str) -> str:
        return "0"


def _peak_rss(*_) -> int:
    """Peak resident memory of this process in bytes: the CPU's nearest to an accelerator's allocated maximum."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _CPUDeviceModule(types.ModuleType):
    """`torch.cpu` with the memory and random-number calls of `torch.cuda` that veRL makes."""

    def __getattr__(self, name: str):
        return getattr(torch.cpu, name)

    # veRL and torch compare the module with torch.cpu.
    def __eq__(self, other: object) -> bool:
        return other is torch.cpu or other is self

    def __hash__(self) -> int:
        return hash(torch.cpu)

    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: _CPUIndex())
    set_device = staticmethod(lambda device: None)
    get_device_name = staticmethod(lambda device=None: "cpu")
    synchronize = staticmethod(lambda device=None: None)
    empty_cache = staticmethod(lambda: None)
    ipc_collect = staticmethod(lambda: None)
    reset_peak_memory_stats = staticmethod(lambda device=None: None)
    set_per_process_memory_fraction = staticmethod(lambda fraction, device=None: None)
    memory_allocated = memory_reserved = staticmethod(lambda device=None: psutil.Process().memory_info().rss)
    max_memory_allocated = max_memory_reserved = staticmethod(_peak_rss)
    manual_seed = manual_seed_all = staticmethod(torch.manual_seed)
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=None: torch.set_rng_state(state))

    @staticmethod
    def mem_get_info(device=None) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total


@PlatformRegistry.register(platform="cpu")
class CPUPlatform(PlatformBase):
    """gloo for collectives, shared memory for weights, and Ray's `GPU` resource standing in for a worker slot.

    veRL counts only GPU and NPU resources, so a CPU run starts Ray with `num_gpus` = the workers wanted.
    """

    _module = _CPUDeviceModule("gpg_verl.cpu.device")

    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: self._module)

    def _nothing(self, *args, **kwargs) -> None:
        """Of what only an accelerator has."""

    set_device = synchronize = empty_cache = set_allocator_settings = _nothing
    cudart = profiler_start = profiler_stop = _nothing

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return chosen()

    def current_device(self) -> str:
        return _CPUIndex()

    def device_count(self) -> int:
        return 1

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"  # what Ray sets for its `GPU` resource

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False
