"""What a run needs of the machine, which one that is, and what a driver may lack: tables, without starting anything."""

from __future__ import annotations

import copy
import socket
from types import SimpleNamespace

import pytest
import tiny
import yaml
from omegaconf import OmegaConf
from packaging.specifiers import SpecifierSet

from gpg_verl.compat import versions
from gpg_verl.compat.versions import LocalProblem
from gpg_verl.launch import doctor, machine
from gpg_verl.launch.check import compose
from gpg_verl.launch.machine import elsewhere, parted
from gpg_verl.launch.preflight import look, stop_message


@pytest.fixture(scope="module")
def overrides(tiny_folder):
    import verl  # noqa: F401  loads the plugin

    return tiny.overrides(tiny_folder)


# ---- attention


@pytest.fixture(scope="module")
def composed(overrides):
    return compose(overrides)


@pytest.fixture
def config_with(composed):
    """config_with(["key=value", ...]): the tiny run's config with these, without composing it again."""

    def config_with(settings):
        config = copy.deepcopy(composed)
        for setting in settings:
            key, _, value = setting.partition("=")
            value = yaml.safe_load(value) if value else None
            OmegaConf.update(config, key, value, force_add=True)
        return config

    return config_with


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
    config_with, environment, tmp_path, packages, settings, said
):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    environment(packages)
    config = config_with([setting.format(sees=tmp_path) for setting in settings])
    found = machine.attention_problems(config) + machine.attention_contradictions(config)
    assert len(found) == (said is not None), found
    for text in said or []:
        assert text in found[0]


def test_check_warns_of_attention_and_a_run_stops(overrides, environment):
    environment({})
    overrides = [*overrides, f"~{ATTENTION}"]
    findings = look(compose(overrides), overrides)
    assert not findings.settings
    assert [isinstance(problem, LocalProblem) for problem in findings.machine] == [True]
    assert BY_PIP in stop_message(findings.all())


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
    monkeypatch.setenv("COLUMNS", "200")
    environment({})
    assert doctor.main() == code
    out = capsys.readouterr().out
    assert ("off flash-attn, with which veRL loads models" in out) == gpu
    assert ("its nodes need it: flash-attn, with which veRL loads models" in out) == (not gpu)
    assert ("all as it should be" in out) == ("right for the head of a cluster" in out) == (not gpu)


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
def test_the_package_that_sends_weights(config_with, environment, mode, backend, packages, missing):
    environment(packages)
    key = "actor_rollout_ref.rollout.checkpoint_engine.backend"
    found = machine.sync_problems(config_with([f"trainer.v1.trainer_mode={mode}", f"{key}={backend}"]))
    assert bool(found) == missing
    assert all("cupy" in problem and "pip install" in problem for problem in found)


@pytest.mark.parametrize(
    ("vllm", "place", "safe"),
    [
        (("vllm", "0.24.0"), None, True),
        (("vllm", "0.28.0"), None, False),
        (None, None, False),
        (("vllm", "0.24.0"), "elsewhere", False),
    ],
)
def test_the_checkpoint_is_loaded_only_for_a_vllm_that_needs_it(composed, monkeypatch, vllm, place, safe):
    monkeypatch.setattr(machine.versions, "found", lambda package: vllm)
    monkeypatch.setattr(machine, "elsewhere", lambda config: place)
    assert machine.dummy_loading_is_safe(composed) == safe


# ---- where the work is done


@pytest.mark.parametrize(
    ("environment_variables", "override", "expected"),
    [
        ({}, "data.seed=1", None),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, "data.seed=1", "Ray at 10.0.0.1:6379"),
        ({"RAY_ADDRESS": "local"}, "data.seed=1", None),
        ({}, "ray_kwargs.ray_init.address=ray://head:10001", "Ray at ray://head:10001"),
        ({"GPG_WORK_ELSEWHERE": "1"}, "data.seed=1", "GPG_WORK_ELSEWHERE=1"),
        ({"GPG_WORK_ELSEWHERE": "0", "RAY_ADDRESS": "auto"}, "data.seed=1", None),
    ],
)
def test_where_a_run_does_its_work(config_with, monkeypatch, tmp_path, environment_variables, override, expected):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    for name in ("RAY_ADDRESS", "GPG_WORK_ELSEWHERE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment_variables.items():
        monkeypatch.setenv(name, value)
    found = elsewhere(config_with([override]))
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
        assert address in elsewhere()
    assert elsewhere() is None


THIN = [  # what a driver without GPU, model, data and disk lacks
    ("data.train_files=/nowhere/train.parquet", True),
    ("actor_rollout_ref.model.path=/nowhere/model", True),
    ("actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=9000000000000", True),
    ("data.train_files={folder}/reward.py", False),  # wrong anywhere
    ("data.train_batch_size=65", False),
]


@pytest.mark.parametrize(("override", "lacking"), THIN)
def test_what_a_thin_driver_lacks_is_told_and_what_is_wrong_anywhere_stops(overrides, tiny_folder, override, lacking):
    more = [*overrides, override.format(folder=tiny_folder)]
    found = look(compose(more), more).all()
    assert parted(found, None) == (found, [])
    stopping, told = parted(found, "the run goes to the Ray at head:6379")
    assert (len(stopping), len(told)) == ((0, 1) if lacking else (1, 0))
    assert all("the Ray at head:6379" in line and found[0] in line for line in told)
    assert ("GPG_WORK_ELSEWHERE=1" in stop_message(found)) == lacking  # the way past


def test_no_vllm_on_a_thin_driver(composed, monkeypatch):
    vllm = versions.Requirement("vllm", ("no-vllm",), SpecifierSet(">=1"), "pip install it")
    monkeypatch.setattr(versions, "PACKAGES", (versions.PACKAGES[0], vllm))
    (problem,) = machine.version_problems(composed)
    assert parted([problem], "elsewhere")[0] == []
