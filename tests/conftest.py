"""Shared by the tests: the tiny model and data, and processes that run as a user's would."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "examples/benchmark"))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import tiny

# This process computes on the CPU; the ones it starts choose for themselves, as a user's would.
os.environ["VERL_PLATFORM"] = "cpu"


# Files with real runs or several processes of torch: tests/run.sh has them one after the other in one process, and all
# others beside it, as two real runs would not fit the memory that README asks for.
RUNS = (
    *("test_run", "test_refill_run", "test_vision", "test_exactness", "test_exactness_vision", "test_prefix_sharing"),
    *("test_gpu_paths", "test_self_check"),
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in RUNS or "quickstart.sh" in item.name:
            item.add_marker("real_run")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_vision_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_vision")
    tiny.make_vision(folder / "model", "qwen2_vl")
    return folder


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def actors(request, tiny_folder):
    """Actor workers of the tiny model, that keep every gradient."""
    from actors import Actors
    from exactness import settled

    with Actors(settled(tiny_folder), ranks=request.param) as actors:
        actors.call("record_gradients", *[(0.1,)] * request.param)
        yield actors


@pytest.fixture(scope="module")
def one(tiny_folder):
    """One worker, for what does not depend on their number."""
    from actors import Actors
    from exactness import settled

    with Actors(settled(tiny_folder)) as actors:
        actors.call("record_gradients", (0.1,))
        yield actors


def run_bash(*words: str, apart: bool = False, **variables: str) -> subprocess.CompletedProcess:
    """Runs `bash …` in the checkout as a user of this Python would; `apart`: errors are not among the output."""
    keep = {name: os.environ[name] for name in ("HOME", "LANG", "PYTHONPATH") if name in os.environ}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", *words],
        cwd=Path(__file__).parents[1],
        env={**keep, "PATH": path, "PY": sys.executable, **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if apart else subprocess.STDOUT,
        timeout=300,
        check=False,
    )


def run_python(*arguments: str, cwd: Path, timeout: float = 400, **environment: str) -> subprocess.CompletedProcess:
    """Runs `python …` as a user would, with output and errors together."""
    inherited = {key: value for key, value in os.environ.items() if key != "VERL_PLATFORM"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**inherited, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="session")
def tiny_config(tiny_folder):
    """tiny_config("key=value", ...): the config of a tiny run with these, composed once."""
    import verl  # noqa: F401  loads the plugin
    from omegaconf import OmegaConf

    from gpg_verl.launch.check import compose

    composed = compose(tiny.overrides(tiny_folder))

    def config_with(*settings: str):
        config = copy.deepcopy(composed)
        for setting in settings:
            key, _, value = setting.lstrip("+").partition("=")
            OmegaConf.update(config, key, yaml.safe_load(value) if value else None, merge=False, force_add=True)
        return config

    return config_with
