"""The CPU platform and its patches: what each is there for."""

from __future__ import annotations

import asyncio
import types

import pytest
import torch

from gpg_verl.cpu.platform import CPUPlatform
from gpg_verl.seams import seam


def test_the_device_serves_both_uses_that_verl_makes_of_it():
    device = CPUPlatform().current_device()
    assert torch.zeros(1).to(device).device == torch.device("cpu")
    assert torch.device(f"cpu:{device}") == torch.device("cpu:0")


def test_the_device_module_is_torch_cpu_with_cudas_calls():
    module = CPUPlatform().device_module
    assert module == torch.cpu
    assert module.is_available()
    free, total = module.mem_get_info()
    assert 0 < free <= total
    assert module.max_memory_allocated() > 0
    state = module.get_rng_state()
    first = torch.rand(3)
    module.set_rng_state(state)
    assert torch.equal(first, torch.rand(3))


def test_the_platform_is_never_guessed(monkeypatch):
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    assert not CPUPlatform().is_platform_available(use_smi_check=True)
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert CPUPlatform().is_platform_available(use_smi_check=True)


def test_a_weight_sync_that_nobody_answers_ends_with_a_message(tmp_path, monkeypatch):
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

    monkeypatch.setenv("GPG_WEIGHT_SYNC_TIMEOUT", "0.2")
    sender = BucketedWeightSender(f"ipc://{tmp_path}/nobody.sock", bucket_size_mb=1, use_shm=True)
    with pytest.raises(RuntimeError, match=r"vLLM did not take the trainer's weights within 0\.2 s"):
        asyncio.run(sender.async_send_weights(iter([("weight", torch.zeros(2))])))


def test_a_patched_place_that_changed_is_named():
    module = types.ModuleType("verl.somewhere")
    with pytest.raises(RuntimeError, match=r"verl\.somewhere\.gone is gone"):
        seam(module, "gone", ())
    module.changed = lambda a, c: None
    with pytest.raises(RuntimeError, match=r"verl\.somewhere\.changed takes \(a, c\), .* written for \(a, b\)"):
        seam(module, "changed", ("a", "b"))
    assert seam(module, "changed", ("a",)) is module.changed
