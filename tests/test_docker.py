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


def said(file: Path, instruction: str) -> list[str]:
    """What each FROM, COPY, ... of the file says, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return re.findall(rf"^{instruction}\s+(.*)", text, flags=re.MULTILINE)


def ignored(path: str) -> bool:
    """Of `.dockerignore`'s three forms: /name, .*, **/name."""
    parts = path.split("/")
    anywhere = [pattern[3:] for pattern in IGNORED if pattern.startswith("**/")]
    at_top = [pattern.removeprefix("/") for pattern in IGNORED if not pattern.startswith("**/")]
    return any(fnmatch.fnmatch(part, pattern) for part in parts for pattern in anywhere) or any(
        fnmatch.fnmatch(parts[0], pattern) for pattern in at_top
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_a_file_names_is_there(file):
    text, (folder,) = file.read_text(), said(file, "WORKDIR")
    assert f"docker build -f docker/{file.name} -t " in text
    assert f":{folder}/runs" in text
    sources = [source for words in said(file, "COPY") for source in words.split()[:-1]]
    scripts = re.findall(r"examples/\S+\.sh", text)
    assert sources
    assert scripts
    assert [name for name in sources + scripts if not (ROOT / name).exists()] == []


def test_the_build_has_what_the_package_and_the_examples_are_made_of():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    sent = {path for path in tracked if not ignored(path)}
    wanted = re.compile(
        r"(gpg_verl|reward_fns|examples)/|(setup\.py|pyproject\.toml|README\.md|LICENSE|requirements-cpu\.txt)$"
    )
    assert {path for path in tracked if wanted.match(path)} <= sent
    assert not {path for path in sent if path.startswith(("tests/", "docs/", "."))}
    made = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    assert [name for name in made if not ignored(name.replace("*", "name"))] == []


def test_the_images_have_the_versions_of_the_pins():
    gpu, cpu = ROOT / "docker/Dockerfile", ROOT / "docker/Dockerfile.cpu"
    (base,) = (words for words in said(gpu, "ARG") if words.startswith("BASE="))
    pins = " ".join(importlib.metadata.requires("verl"))
    major, minor = re.search(r'vllm==(\d+)\.(\d+)\.\d+; extra == "vllm"', pins).groups()
    assert base == f"BASE=verlai/verl:vllm{major}{minor:0>2}.latest"
    assert "'.[gpu]'" in said(gpu, "RUN")[0]
    (base,) = said(cpu, "FROM")
    version = re.fullmatch(r"python:(3\.\d+)-slim", base)[1]
    assert f"tried with {version}" in (ROOT / "examples/setup_cpu.sh").read_text()
