"""The CPU platform and its patches: what each is there for."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path

import pytest
import tiny
import torch
from conftest import run_python
from PIL import Image

from gpg_verl.cpu import join_running_ray, qwen_vl_utils, verl_patches
from gpg_verl.cpu.platform import CPUPlatform
from gpg_verl.launch.check import compose


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


@pytest.mark.parametrize(
    ("raylet", "expected"),
    [("4711", "ipc:///tmp/rl-01000000-rank-0-raylet-4711.sock"), (None, "ipc:///tmp/rl-01000000-rank-0.sock")],
)
def test_two_runs_on_a_machine_do_not_meet_at_one_socket(raylet, expected, monkeypatch):
    """In a Ray of its own, every run is job 01000000."""
    monkeypatch.delenv("RAY_RAYLET_PID", raising=False)
    if raylet:
        monkeypatch.setenv("RAY_RAYLET_PID", raylet)
    assert verl_patches.of_this_ray("ipc:///tmp/rl-01000000-rank-0.sock") == expected


@pytest.mark.parametrize(
    ("variable", "address", "joins"),
    [(None, None, None), ("", "local", None), ("10.0.0.1:6379", None, "10.0.0.1:6379"), (None, "auto", "auto")],
)
def test_a_running_ray_is_not_told_its_size(variable, address, joins, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    config = compose(["+preset=cpu", *([f"+ray_kwargs.ray_init.address={address}"] if address else [])])
    lines = join_running_ray(config)
    kept = (None, None, None) if joins else (16, 1, 300000000)
    assert tuple(config.ray_kwargs.ray_init[key] for key in ("num_cpus", "num_gpus", "object_store_memory")) == kept
    assert bool(lines) == bool(joins)
    if joins:
        assert f"joins the Ray at {joins}" in lines[0]
        assert "num_cpus=16, num_gpus=1, object_store_memory=300000000" in lines[0]


@pytest.mark.parametrize(
    ("overrides", "slots"),
    [
        ([], 1),
        (["actor_rollout_ref.rollout.nnodes=1"], 2),
        (["actor_rollout_ref.rollout.nnodes=1", "trainer.n_gpus_per_node=2"], 4),
        (["actor_rollout_ref.rollout.nnodes=1", "actor_rollout_ref.rollout.n_gpus_per_node=3"], 4),
        (["actor_rollout_ref.rollout.nnodes=1", "ray_kwargs.ray_init.num_gpus=8"], 8),
        (["actor_rollout_ref.rollout.nnodes=1", "ray_kwargs.ray_init.num_gpus=null"], 2),
    ],
)
def test_rollout_of_its_own_has_worker_slots(overrides, slots, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = compose(["+preset=cpu", *overrides])
    join_running_ray(config)
    assert config.ray_kwargs.ray_init.num_gpus == slots


def trained(steps: int, saved=None, **options):
    """An AdamW and its parameter, after so many steps, on from what another saved."""
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 100))
    optimizer = torch.optim.AdamW([parameter], lr=0.01, **options)
    if saved:
        parameter.data.copy_(saved[0])
        optimizer.load_state_dict(copy.deepcopy(saved[1]))
    for _ in range(steps):
        parameter.grad = parameter.detach().square()
        optimizer.step()
    return parameter.detach(), optimizer.state_dict()


def test_the_presets_optimizer_goes_on_from_a_checkpoint_of_torchs_default_and_back():
    preset = compose(["+preset=cpu"]).actor_rollout_ref.actor.optim.override_optimizer_config
    assert preset == {"fused": True}
    whole, _ = trained(6)
    for first, then in ((preset, {}), ({}, preset), (preset, preset)):
        parameter, _ = trained(3, trained(3, **first), **then)
        assert torch.allclose(parameter, whole, rtol=0, atol=1e-7)
    assert not torch.allclose(trained(3)[0], whole, rtol=0, atol=1e-3)


# Computed by qwen_vl_utils 0.0.14.
@pytest.mark.parametrize(
    ("height", "width", "factor", "min_pixels", "max_pixels", "expected"),
    [
        (56, 84, 28, None, None, (56, 84)),
        (1, 1, 28, None, None, (56, 56)),
        (10, 1900, 28, None, None, (28, 1904)),
        (20, 30, 28, 3136, None, (56, 84)),
        (50, 70, 28, 3136, 401408, (56, 56)),
        (1080, 1920, 28, None, 401408, (448, 840)),
        (1080, 1920, 32, None, None, (1088, 1920)),
        (4000, 9000, 28, None, None, (2380, 5376)),
    ],
)
def test_images_are_resized_as_qwen_vl_utils_does(height, width, factor, min_pixels, max_pixels, expected):
    assert qwen_vl_utils.smart_resize(height, width, factor, min_pixels, max_pixels) == expected


def test_images_come_out_of_messages_in_their_order(tmp_path):
    red, clear = Image.new("RGB", (60, 90), "red"), Image.new("RGBA", (90, 60), (0, 0, 0, 0))
    red.save(tmp_path / "red.png")
    parts = [{"type": "image", "image": f"file://{tmp_path}/red.png"}, {"type": "text", "text": "and"}]
    messages = [
        {"role": "system", "content": "look"},
        {"role": "user", "content": [*parts, {"type": "image", "image": clear, "min_pixels": 784, "max_pixels": 1600}]},
    ]
    (first, second), videos = qwen_vl_utils.process_vision_info(messages)
    assert (first.size, first.getpixel((0, 0))) == ((56, 84), (255, 0, 0))
    assert (second.size, second.getpixel((0, 0))) == ((28, 28), (255, 255, 255))
    assert videos is None
    assert qwen_vl_utils.process_vision_info(messages[:1], return_video_metadata=True) == (None, None)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "video", "video": "a.mp4"}, "reads images but no videos: leave video rows out"),
        ({"type": "image", "image": "https://somewhere/a.png"}, "images are read from local files"),
    ],
)
def test_what_the_stand_in_cannot_read_is_refused(part, expected):
    with pytest.raises((RuntimeError, ValueError), match=expected):
        qwen_vl_utils.process_vision_info([{"role": "user", "content": [part]}])


STAND_INS = """
import sys
from gpg_verl.cpu import stand_ins
stand_ins.install()
stand_ins.install()
print(sum(isinstance(finder, stand_ins.StandIns) for finder in sys.meta_path))
import qwen_vl_utils
print(qwen_vl_utils.__file__)
"""


@pytest.mark.parametrize(
    ("torchvision", "expected"),
    [
        pytest.param(False, ["1", str(Path(qwen_vl_utils.__file__))], id="torchvision is missing"),
        pytest.param(True, ["0", "{folder}/qwen_vl_utils.py"], id="the real one can be imported"),
    ],
)
def test_a_stand_in_never_shadows_what_can_be_imported(torchvision, expected, tmp_path):
    (tmp_path / "qwen_vl_utils.py").write_text("")
    if torchvision:
        (tmp_path / "torchvision.py").write_text("")
    root = str(Path(__file__).parents[1])
    result = run_python("-c", STAND_INS, cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{root}")
    assert result.stdout.split() == [line.format(folder=tmp_path) for line in expected]


def test_weights_go_through_files(monkeypatch):
    """Of two ranks the first writes; what does not come is waited for no longer than the other way."""
    from gpg_verl.cpu.checkpoint_engine import FilesCheckpointEngine

    engines = first, second, rollout = [FilesCheckpointEngine(1, is_master=rank == 0) for rank in range(3)]
    folders = FilesCheckpointEngine.build_topology(2, 1, [engine.prepare() for engine in engines])
    for engine, folder in zip(engines, (*folders[0]["folder"], *folders[1]["folder"]), strict=True):
        engine.init_process_group(folder=folder)
    weights = [("a", torch.randn(3, 2).bfloat16()), ("b", torch.nn.Parameter(torch.randn(())))]

    async def received():
        return [item async for item in rollout.receive_weights()]

    monkeypatch.setenv("GPG_WEIGHT_SYNC_TIMEOUT", "0.2")
    asyncio.run(second.send_weights(weights))
    with pytest.raises(RuntimeError, match=r"trainer did not write .*/0 within 0.2 s .* GPG_WEIGHT_SYNC_TIMEOUT"):
        asyncio.run(received())
    asyncio.run(first.send_weights(weights))
    for (name, weight), (expected, original) in zip(asyncio.run(received()), weights, strict=True):
        assert name == expected
        assert weight.dtype == original.dtype
        assert torch.equal(weight, original)
    for engine in engines:
        engine.finalize()
    assert not rollout.folder.exists()


def test_what_vllm_samples_has_its_probabilities(tmp_path):
    """Through vLLM's own sampler, with and without top-k; tokens without probability are never taken."""
    (tmp_path / "sample.py").write_text(SAMPLE)
    done = run_python("sample.py", cwd=tmp_path, VERL_PLATFORM="cpu")
    assert done.returncode == 0, done.stdout[-3000:]


SAMPLE = """
import torch
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.v1.sample.ops import topk_topp_sampler
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

assert topk_topp_sampler.compiled_random_sample.__module__ == "gpg_verl.cpu.vllm_patches"
torch.manual_seed(0)
rows, inf = 40_000, float("inf")
logits = torch.tensor([-inf, 0.0, 2.0, -inf, 1.0, -30.0, -1.0, -inf]).repeat(rows, 1)
sampler = TopKTopPSampler()
for k, expected in ((None, logits[0].softmax(-1)), (2, torch.tensor([0, 0, 2.0, 0, 1.0, 0, 0, 0]))):
    if k:
        expected = torch.where(expected > 0, expected.exp(), 0)
        expected /= expected.sum()
    limit = None if k is None else torch.full((rows,), k)
    sampled, _ = sampler.forward_cpu(logits.clone(), {}, limit, None)
    shares = torch.bincount(sampled, minlength=len(expected)) / rows
    error = (expected * (1 - expected) / rows).sqrt()
    assert ((shares - expected).abs() <= 5 * error + 1e-9).all(), (shares, expected)
torch.manual_seed(1)
again = [sampler.forward_cpu(logits.clone(), {}, None, None)[0] for _ in range(2)]
torch.manual_seed(1)
assert torch.equal(again[0], sampler.forward_cpu(logits.clone(), {}, None, None)[0])
assert not torch.equal(*again)
"""


def test_check_knows_the_cpu_build_of_vllm_where_a_run_does(tiny_folder, tmp_path):
    """veRL asks for vLLM's version where an adapter is trained; the preset alone chose the CPU."""
    arguments = [*tiny.overrides(tiny_folder), "actor_rollout_ref.model.lora_rank=8"]
    done = run_python("-m", "gpg_verl", "check", *arguments, cwd=tmp_path)
    assert "0 errors" in done.stdout, done.stdout
