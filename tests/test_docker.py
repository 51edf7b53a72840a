"""docker/: what an image is built from exists, is not ignored, and names the versions that setup.py and the pins do.

Images cannot be pulled in the tests; docs/drills.md says what was built, and how.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docker").glob("Dockerfile*"))
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def instructions(file: Path) -> list[tuple[str, str]]:
    """(FROM, what it says), ..., with continued lines joined."""
    text = re.sub(r"^#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]


def said(file: Path, instruction: str) -> list[str]:
    return [words for name, words in instructions(file) if name == instruction]


def ignored(path: str) -> bool:
    """Of `.dockerignore`'s three forms: /name, .*, **/name."""
    top, parts = path.split("/")[0], path.split("/")
    return any(
        any(fnmatch.fnmatch(part, pattern[3:]) for part in parts)
        if pattern.startswith("**/")
        else fnmatch.fnmatch(top, pattern.removeprefix("/"))
        for pattern in IGNORED
    )


def tracked() -> list[str]:
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_is_copied_is_there(file):
    for words in said(file, "COPY"):
        *sources, _ = words.split()
        assert all((ROOT / source).exists() for source in sources)
    for script in re.findall(r"examples/\S+\.sh", file.read_text()):
        assert (ROOT / script).is_file()
        assert not ignored(script)


def test_the_build_has_what_the_package_and_the_examples_are_made_of():
    sent = {path for path in tracked() if not ignored(path)}
    wanted = re.compile(
        r"(gpg_verl|reward_fns|examples)/|(setup\.py|pyproject\.toml|README\.md|LICENSE|requirements-cpu\.txt)$"
    )
    assert {path for path in tracked() if wanted.match(path)} <= sent
    assert not {path for path in sent if path.startswith(("tests/", "docs/", "."))}


def test_nothing_made_by_running_is_sent():
    made = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    assert [name for name in made if not ignored(name.replace("*", "name"))] == []


def test_the_gpu_image_has_the_vllm_that_verl_pins():
    (base,) = (words for words in said(ROOT / "docker/Dockerfile", "ARG") if words.startswith("BASE="))
    pins = " ".join(importlib.metadata.requires("verl"))
    major, minor = re.search(r'vllm==(\d+)\.(\d+)\.\d+; extra == "vllm"', pins).groups()
    assert base == f"BASE=verlai/verl:vllm{major}{minor:0>2}.latest"
    assert "'.[gpu]'" in said(ROOT / "docker/Dockerfile", "RUN")[0]


def test_the_cpu_image_has_the_python_of_the_pins():
    (base,) = said(ROOT / "docker/Dockerfile.cpu", "FROM")
    version = re.fullmatch(r"python:(3\.\d+)-slim", base)[1]
    assert f"tried with {version}" in (ROOT / "examples/setup_cpu.sh").read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_usage_names_the_file_and_the_folder_of_runs(file):
    text = file.read_text()
    assert f"docker build -f docker/{file.name} -t " in text
    (folder,) = said(file, "WORKDIR")
    assert f":{folder}/runs" in text
