"""What a run needs of the machine, and which one that is: tables, without starting anything."""

from __future__ import annotations

import shutil
import socket
from collections import namedtuple
from types import SimpleNamespace

import pytest
from packaging.specifiers import SpecifierSet

from gpg_verl.compat import versions
from gpg_verl.guards import placement
from gpg_verl.launch import doctor, facts, machine
from gpg_verl.launch.facts import Facts, remote_cluster

# ---- attention


ATTENTION = "actor_rollout_ref.model.override_config.attn_implementation"
PADDED = "actor_rollout_ref.model.use_remove_padding"
ULYSSES = "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size"
BY_PIP, BY_NVCC = f"+{ATTENTION}=sdpa", "pip install --no-build-isolation flash-attn"


@pytest.fixture
def environment(monkeypatch):
    """environment(packages): {distribution: version} is what is installed."""

    def environment(packages):
        monkeypatch.setattr(machine, "installed", packages.get)
        modules = {"flash-attn": "flash_attn", "flash-attn-4": "flash_attn", "flash-attn-3": "flash_attn_interface"}
        found = {modules.get(name, name) for name in packages}
        monkeypatch.setattr(machine, "importable", found.__contains__)

    return environment


@pytest.mark.parametrize(
    ("packages", "settings", "said"),
    [
        ({}, [f"{ATTENTION}=sdpa"], None),
        ({}, [f"{ATTENTION}=eager"], None),
        ({}, [f"{ATTENTION}="], [f"{ATTENTION}=flash_attention_2, veRL's default", BY_PIP, BY_NVCC, "docker"]),
        ({}, [f"{ATTENTION}=flash_attention_2"], ["flash-attn is not installed", BY_PIP, BY_NVCC]),
        ({"flash-attn": "2.8.3"}, [f"{ATTENTION}="], None),
        ({"flash-attn": "2.3.2"}, [f"{ATTENTION}="], ["flash-attn is not installed"]),
        ({"kernels": "0.17.2"}, [f"{ATTENTION}="], None),  # from the hub
        ({"kernels": "0.9.0"}, [f"{ATTENTION}="], ["flash-attn is not installed"]),
        ({"flash-attn": "2.8.3"}, [f"{ATTENTION}=flash_attention_3"], ["flash-attn-3 is not installed"]),
        ({"flash-attn-3": "3.0.0"}, [f"{ATTENTION}=flash_attention_3"], None),
        ({"flash-attn-4": "4.0.0"}, [f"{ATTENTION}="], ["flash-attn is not installed"]),
        ({}, [f"{ATTENTION}=", "actor_rollout_ref.model.path={sees}"], [BY_PIP, f"{PADDED}=False"]),
        (
            {"kernels": "0.17.2"},  # veRL calls flash-attn by its own name
            [f"{ATTENTION}=sdpa", f"{PADDED}=True", "actor_rollout_ref.model.path={sees}"],
            ["for qwen2_vl veRL calls flash-attn", f"{PADDED}=False"],
        ),
        ({}, [f"{ATTENTION}=sdpa", "actor_rollout_ref.model.path={sees}"], None),  # padded
        ({"flash-attn": "2.8.3"}, [f"{ATTENTION}=sdpa", f"{ULYSSES}=2"], [f"{ULYSSES}=2", "see itself alone"]),
        ({"flash-attn": "2.8.3"}, [f"{ATTENTION}=", f"{ULYSSES}=2"], None),
    ],
)
def test_the_attention_that_the_model_would_be_loaded_with(
    tiny_config, environment, tmp_path, packages, settings, said
):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    environment(packages)
    run = Facts.read(tiny_config(*(setting.format(sees=tmp_path) for setting in settings)))
    found = [message for check in (machine.no_attention, machine.attention_to_a_part) if (message := check(run))]
    assert len(found) == (said is not None), found
    assert [text for text in said or [] if text not in found[0]] == []


def test_doctor_says_that_flash_attention_is_missing(environment, monkeypatch):
    assert doctor.attention_problem() is None  # of an installation for CPUs
    monkeypatch.setattr(doctor.versions, "found", lambda package: ("vllm", "0.24.0"))
    environment({})
    assert BY_PIP in doctor.attention_problem()
    assert BY_NVCC in doctor.attention_problem()
    environment({"flash-attn": "2.8.3"})
    assert doctor.attention_problem() is None


@pytest.mark.parametrize(("gpu", "code"), [(True, 1), (False, 0)])
def test_doctor_on_the_head_of_a_cluster(environment, monkeypatch, capsys, gpu, code):
    """No flash-attn where there is a GPU is off; where there is none, the other nodes need it, and all is well here."""
    found = versions.found
    monkeypatch.setattr(
        versions, "found", lambda package: ("vllm", "0.24.0") if package.name == "vllm" else found(package)
    )
    monkeypatch.setattr(doctor, "registrations", lambda: ([], []))
    platform = SimpleNamespace(device_name="cuda", is_available=lambda: gpu)
    monkeypatch.setattr("verl.plugin.platform.get_platform", lambda: platform)
    environment({})
    assert doctor.main() == code
    out = capsys.readouterr().out
    assert ("off flash-attn, with which veRL loads models" in out) == gpu
    assert ("its nodes need it: flash-attn, with which veRL loads models" in out) == (not gpu)
    assert ("all as it should be" in out) == ("right for the head of a cluster" in out) == (not gpu)


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
def test_the_package_that_sends_weights(tiny_config, environment, mode, backend, packages, missing):
    environment(packages)
    message = machine.no_cupy(Facts.read(tiny_config(f"trainer.v1.trainer_mode={mode}", f"{BACKEND}={backend}")))
    assert ("cupy" in (message or "")) == missing


@pytest.mark.parametrize(
    ("vllm", "place", "safe"),
    [
        (("vllm", "0.24.0"), None, True),
        (("vllm", "0.28.0"), None, False),
        (None, None, False),
        (("vllm", "0.24.0"), "elsewhere", False),
    ],
)
def test_the_checkpoint_is_loaded_only_for_a_vllm_that_needs_it(tiny_config, monkeypatch, vllm, place, safe):
    monkeypatch.setattr(versions, "found", lambda package: vllm)
    monkeypatch.setattr(facts, "remote_cluster", lambda config: place)
    assert Facts.read(tiny_config()).dummy_loading_is_safe == safe


# ---- memory, disks, a login


def test_memory_needed_grows_with_the_model(tiny_config):
    run = Facts.read(tiny_config())
    run.tensor_shapes = []
    without = machine.cpu_bytes_needed(run)
    run.tensor_shapes = [[1000, 1000], [1000]]
    assert machine.cpu_bytes_needed(run) == without + 8 * 4 * 1_001_000


@pytest.mark.parametrize(
    ("used", "lacking", "warned"), [(0.5, False, False), (0.96, False, True), (0.999, True, False)]
)
def test_rays_disk_is_looked_at(tiny_config, monkeypatch, tmp_path, used, lacking, warned):
    size = 200e9
    usage = namedtuple("usage", "total used free")(size, size * used, size * (1 - used))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "not/there/yet"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    run = Facts.read(tiny_config())
    for check, expected in ((machine.full_ray_disk, lacking), (machine.nearly_full_ray_disk, warned)):
        message = check(run)
        assert bool(message) == expected
        assert message is None or ("not/there/yet/ray" in message and "RAY_TMPDIR=" in message)
    run.remote_cluster = "the run goes to a Ray"
    assert (machine.full_ray_disk(run), machine.nearly_full_ray_disk(run)) == (None, None)


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
def test_a_login_of_wandb(tiny_config, monkeypatch, tmp_path, variables, file, content, logged_in):
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "none"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if file:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content)
    assert (machine.no_wandb_login(Facts.read(tiny_config("trainer.logger=wandb"))) is None) == logged_in


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


def test_a_ray_that_is_started_counts_this_machine(tiny_config, monkeypatch):
    monkeypatch.setattr(placement, "local_cpus", lambda: 4)
    assert "4 (the CPUs of this machine)" in machine.too_few_cpus(
        Facts.read(tiny_config("ray_kwargs.ray_init.num_cpus="))
    )


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
    ("package", "expected"),
    [
        (versions.requirement("verl"), None),
        (
            versions.Requirement("vllm", ("vllm-none",), SpecifierSet(">=1"), "pip install it"),
            "vllm is not installed (wanted >=1): pip install it",
        ),
        (
            versions.Requirement("verl", ("verl",), SpecifierSet("==0.1"), "pip install verl==0.1"),
            "verl 0.9.1 is installed, wanted ==0.1: pip install verl==0.1",
        ),
    ],
)
def test_versions(package, expected, tiny_config, monkeypatch):
    assert versions.problem(package) == expected
    if package.name == "vllm":
        monkeypatch.setattr(versions, "PACKAGES", (versions.PACKAGES[0], package))
        assert machine.no_vllm(Facts.read(tiny_config())) == expected
