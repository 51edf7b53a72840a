"""What a run needs of the machine, and which one that is: tables, without starting anything."""

from __future__ import annotations

import shutil
import socket
from collections import namedtuple
from types import SimpleNamespace

import pytest
from packaging.specifiers import SpecifierSet

from gpg_verl.compat import versions
from gpg_verl.compat.versions import LocalProblem
from gpg_verl.guards import placement
from gpg_verl.launch import doctor, facts, machine
from gpg_verl.launch.facts import Advice, Facts, remote_cluster

ATTENTION, PADDED = machine.ATTENTION, machine.PACKED
ULYSSES = "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size"
BY_PIP, BY_NVCC = f"+{ATTENTION}=sdpa", "pip install --no-build-isolation flash-attn"
SEES = "actor_rollout_ref.model.path={sees}"


@pytest.fixture
def run(tiny_config):
    """run("key=value", ...): the facts of a tiny run with these."""
    return lambda *settings: Facts(tiny_config(*settings))


@pytest.fixture
def environment(monkeypatch):
    """environment(packages): {distribution: version} is what is installed."""

    def environment(packages):
        monkeypatch.setattr(machine, "installed", packages.get)
        monkeypatch.setattr(machine, "importable", packages.__contains__)

    return environment


@pytest.mark.parametrize(
    ("packages", "settings", "said"),
    [
        ([], [f"{ATTENTION}=sdpa"], None),
        ([], [f"{ATTENTION}=eager"], None),
        ([], [f"{ATTENTION}="], [f"{ATTENTION}=flash_attention_2, veRL's default", BY_PIP, BY_NVCC, "docker"]),
        ([], [f"{ATTENTION}=flash_attention_2"], ["_2: flash-attn is not installed", BY_PIP, BY_NVCC]),
        (["flash-attn"], [f"{ATTENTION}="], None),
        (["kernels"], [f"{ATTENTION}="], None),  # from the hub
        (["flash-attn"], [f"{ATTENTION}=flash_attention_3"], ["flash-attn-3 is not installed"]),
        (["flash-attn-3"], [f"{ATTENTION}=flash_attention_3"], None),
        (["flash-attn-4"], [f"{ATTENTION}="], ["flash-attn is not installed"]),
        ([], [f"{ATTENTION}=", "trainer.device=npu"], None),
        ([], [f"{ATTENTION}=", SEES], [BY_PIP, f"{PADDED}=False"]),
        # veRL calls flash-attn by its own name, whatever `kernels` has
        (["kernels"], [f"{ATTENTION}=sdpa", f"{PADDED}=True", SEES], ["for qwen2_vl veRL calls", f"{PADDED}=False"]),
        ([], [f"{ATTENTION}=sdpa", SEES], None),  # padded
        (["flash-attn"], [f"{ATTENTION}=sdpa", f"{ULYSSES}=2"], [f"{ULYSSES}=2", "see itself alone"]),
        (["flash-attn"], [f"{ATTENTION}=", f"{ULYSSES}=2"], None),
    ],
)
def test_the_attention_that_the_model_would_be_loaded_with(run, environment, tmp_path, packages, settings, said):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    environment(dict.fromkeys(packages, "1"))
    found = list(machine.attention(run(*(setting.format(sees=tmp_path) for setting in settings))))
    assert len(found) == (said is not None), found
    assert [text for text in said or [] if text not in found[0]] == []
    assert all(isinstance(message, LocalProblem) != ("see itself alone" in message) for message in found)


@pytest.mark.parametrize(("gpu", "code"), [(True, 1), (False, 0)])
def test_doctor_on_the_head_of_a_cluster(environment, monkeypatch, capsys, gpu, code):
    """No flash-attn where there is a GPU is off; where there is none, the other nodes need it, and all is well here."""
    assert doctor.attention_problem() is None  # of an installation for CPUs
    found = versions.found
    monkeypatch.setattr(
        versions, "found", lambda package: ("vllm", "0.24.0") if package.name == "vllm" else found(package)
    )
    monkeypatch.setattr(doctor, "registrations", lambda: ([], []))
    platform = SimpleNamespace(device_name="cuda", is_available=lambda: gpu)
    monkeypatch.setattr("verl.plugin.platform.get_platform", lambda: platform)
    environment({"flash-attn": "2.8.3"})
    assert doctor.attention_problem() is None
    environment({})
    assert doctor.main() == code
    out = capsys.readouterr().out
    assert ("off flash-attn, with which veRL loads models" in out) == gpu
    assert ("its nodes need it: flash-attn, with which veRL loads models" in out) == (not gpu)
    assert ("all as it should be" in out) == ("right for the head of a cluster" in out) == (not gpu)
    assert BY_PIP in out
    assert BY_NVCC in out


BACKEND = "actor_rollout_ref.rollout.checkpoint_engine.backend"


@pytest.mark.parametrize(
    ("mode", "backend", "packages", "missing"),
    [
        ("separate_async", "nccl", {}, True),
        ("gpg_separate_async", "nccl", {}, True),
        ("separate_async", "nccl", {"cupy": "14.0.1"}, False),
        ("separate_async", "naive", {}, False),
        ("sync", "nccl", {}, False),
    ],
)
def test_the_package_that_sends_weights(run, environment, mode, backend, packages, missing):
    environment(packages)
    found = list(machine.packages(run(f"trainer.v1.trainer_mode={mode}", f"{BACKEND}={backend}")))
    assert [f"{BACKEND}=nccl: cupy" in message for message in found] == [True] * missing


@pytest.mark.parametrize(
    ("vllm", "place", "safe"),
    [
        (("vllm", "0.24.0"), None, True),
        (("vllm", "0.28.0"), None, False),
        (None, None, False),
        (("vllm", "0.24.0"), "elsewhere", False),
    ],
)
def test_the_checkpoint_is_loaded_only_for_a_vllm_that_needs_it(run, monkeypatch, vllm, place, safe):
    monkeypatch.setattr(versions, "found", lambda package: vllm)
    monkeypatch.setattr(facts, "remote_cluster", lambda config: place)
    assert run().dummy_loading_is_safe == safe


# ---- memory, disks, a login


def test_memory_needed_grows_with_the_model(run):
    small, large = run(), run()
    small.tensor_shapes, large.tensor_shapes = [], [[1000, 1000], [1000]]
    assert machine.cpu_bytes_needed(large) == machine.cpu_bytes_needed(small) + 8 * 4 * 1_001_000


FSDP = "actor_rollout_ref.actor"


@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        ([], 3),  # weights and two moments
        ([f"{FSDP}.checkpoint.save_contents=[model]"], 1),
        ([f"{FSDP}.fsdp_config.model_dtype=bf16"], 1.5),
        (["trainer.save_freq=-1"], 0),
        (["trainer.nnodes=2"], 0),
        (["actor_rollout_ref.model.lora_rank=8"], 0),
        ([f"{FSDP}.strategy=megatron"], 0),
    ],
)
def test_a_checkpoint_has_room(run, monkeypatch, tmp_path, settings, copies):
    facts = run("trainer.save_freq=1", f"trainer.default_local_dir={tmp_path}", *settings)
    facts.tensor_shapes = [[1000, 1000], [1000]]
    for free, full in ((copies * 4 * 1_001_000, False), (copies * 4 * 1_001_000 - 1, copies > 0)):
        monkeypatch.setattr(machine, "free_bytes", lambda directory, free=free: free)
        assert any("a checkpoint takes" in message for message in machine.disks(facts)) == full


@pytest.mark.parametrize(("used", "kinds"), [(0.5, []), (0.96, [Advice]), (0.999, [LocalProblem])])
def test_rays_disk_is_looked_at(run, monkeypatch, tmp_path, used, kinds):
    size = 200e9
    usage = namedtuple("usage", "total used free")(size, size * used, size * (1 - used))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "not/there/yet"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    facts = run()
    found = list(machine.disks(facts))
    assert [type(message) for message in found] == kinds
    assert all("not/there/yet/ray" in message and "RAY_TMPDIR=" in message for message in found)
    facts.remote_cluster = "the run goes to a Ray"
    assert list(machine.disks(facts)) == []


@pytest.mark.parametrize(
    ("variables", "file", "content", "logged_in"),
    [
        ({}, None, "", False),
        ({"WANDB_API_KEY": "a"}, None, "", True),
        ({"WANDB_MODE": "offline"}, None, "", True),
        ({"WANDB_MODE": "online"}, None, "", False),
        ({}, "netrc", "machine api.wandb.ai login user password a", True),
        ({}, "netrc", "machine github.com login user password a", False),
        ({"WANDB_BASE_URL": "https://wandb.here:8080"}, "netrc", "machine wandb.here login user password a", True),
        ({}, "wandb/settings", "[default]\nmode = offline\n", True),  # what `wandb offline` writes
    ],
)
def test_a_login_of_wandb(run, monkeypatch, tmp_path, variables, file, content, logged_in):
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"NETRC": str(tmp_path / "netrc"), **variables}.items():
        monkeypatch.setenv(name, value)
    if file:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content)
    assert len(list(machine.loggers(run("trainer.logger=wandb")))) == (not logged_in)


# ---- CPUs


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ([], 5),  # a controller, the preset's storage unit, 3 for the GPU
        (["transfer_queue.backend.SimpleStorage.num_data_storage_units=8"], 12),
        (["transfer_queue.backend.storage_backend=MooncakeStore"], 4),
        (["trainer.nnodes=2", "trainer.n_gpus_per_node=8"], 50),
        (["actor_rollout_ref.rollout.nnodes=1", "actor_rollout_ref.rollout.n_gpus_per_node=2"], 9),
        (["reward.reward_model.enable_resource_pool=True", "reward.reward_model.nnodes=1",
          "reward.reward_model.n_gpus_per_node=1"], 8),
    ],
)  # fmt: skip
def test_what_a_run_reserves(tiny_config, settings, needed):
    config = tiny_config(*settings)
    assert placement.too_few_cpus(config, needed, "here") is None
    message = placement.too_few_cpus(config, needed - 1, "here")
    assert f"reserves {needed}, namely" in message
    assert f"set ray_kwargs.ray_init.num_cpus={needed}" in message


def test_a_ray_that_is_started_counts_this_machine(run, monkeypatch):
    monkeypatch.setattr(placement, "local_cpus", lambda: 4)
    (message,) = machine.cpus(run("ray_kwargs.ray_init.num_cpus="))
    assert "4 (the CPUs of this machine)" in message


# ---- where the work is done


@pytest.mark.parametrize(
    ("variables", "override", "expected"),
    [
        ({}, "data.seed=1", None),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, "data.seed=1", "Ray at 10.0.0.1:6379"),
        ({"RAY_ADDRESS": "local"}, "data.seed=1", None),
        ({}, "ray_kwargs.ray_init.address=ray://head:10001", "Ray at ray://head:10001"),
        ({"GPG_WORK_ELSEWHERE": "1"}, "data.seed=1", "GPG_WORK_ELSEWHERE=1"),
        ({"GPG_WORK_ELSEWHERE": "0", "RAY_ADDRESS": "auto"}, "data.seed=1", None),
    ],
)
def test_where_a_run_does_its_work(tiny_config, monkeypatch, tmp_path, variables, override, expected):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    for name in ("RAY_ADDRESS", "GPG_WORK_ELSEWHERE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = remote_cluster(tiny_config(override))
    assert found is None if expected is None else expected in found


def test_a_ray_that_was_started_on_this_machine_is_joined_while_it_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    with socket.socket() as ray:
        ray.bind(("127.0.0.1", 0))
        ray.listen()
        address = f"127.0.0.1:{ray.getsockname()[1]}"
        (tmp_path / "ray/ray_current_cluster").write_text(address)
        assert address in remote_cluster()
    assert remote_cluster() is None


@pytest.mark.parametrize(
    ("name", "distribution", "wanted", "said"),
    [
        ("verl", "verl", str(versions.VERL), None),
        ("vllm", "vllm-none", ">=1", "vllm is not installed (wanted >=1): pip install it"),
        ("verl", "verl", "==0.1", "verl 0.9.1 is installed, wanted ==0.1: pip install it"),
    ],
)
def test_versions(name, distribution, wanted, said, run, monkeypatch):
    package = versions.Requirement(name, (distribution,), SpecifierSet(wanted), "pip install it")
    assert versions.problem(package) == said
    if name == "vllm":
        monkeypatch.setattr(versions, "PACKAGES", (versions.PACKAGES[0], package))
        assert list(machine.packages(run())) == [said]
