"""CONTRIBUTING's table of rooms, held against every import: who may use whom, and what each never loads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("gpg_verl", "reward_fns")


class Room(NamedTuple):
    places: tuple[str, ...]  # folders end with a slash
    imports: frozenset[str]
    never: frozenset[str]

    @property
    def name(self) -> str:
        return Path(self.places[0]).stem

    def files(self) -> list[Path]:
        found = []
        for place in self.places:
            found += sorted((ROOT / place).rglob("*.py")) if place.endswith("/") else [ROOT / place]
        return found


def words(cell: str) -> frozenset[str]:
    return frozenset(filter(None, re.split(r",\s*", cell.strip())))


def rooms() -> list[Room]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Where things are")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|.*\|(.*?)\|(.*?)\|$", table, flags=re.MULTILINE)
    return [Room(tuple(re.findall(r"`(.*?)`", place)), words(ours), words(never)) for place, ours, never in rows]


ROOMS = rooms()
PACKAGE = [room for room in ROOMS if room.name not in ("tests", "examples")]


def room_of(file: Path) -> Room | None:
    return next((room for room in ROOMS if file in room.files()), None)


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or later: dotted, with the name that `from` takes."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    never_run = {node for block in typing for statement in block.body for node in ast.walk(statement)}
    for node in ast.walk(tree):
        if node in never_run:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def used(room: Room) -> set[str]:
    """The rooms of ours that a room imports."""
    found = set()
    for file in room.files():
        for name in imported(file):
            parts = name.split(".")
            if parts[0] == "reward_fns":
                found.add("reward_fns")
            elif parts[0] == "gpg_verl" and len(parts) > 1 and parts[1] != "__version__":
                found.add(parts[1])
    return found - {Path(place).stem for place in room.places}


def test_every_file_has_one_room():
    files = [file for package in OURS for file in (ROOT / package).rglob("*.py")]
    places = {file: [room.name for room in PACKAGE if file in room.files()] for file in files}
    assert {file: found for file, found in places.items() if len(found) != 1} == {ROOT / "gpg_verl/__init__.py": []}


@pytest.mark.parametrize("room", PACKAGE, ids=lambda room: room.name)
def test_a_room_imports_what_the_table_says(room):
    """No less either, so that the table does not go stale."""
    assert used(room) == room.imports


def test_imports_point_down():
    """A row imports only rows below it, so there is no circle."""
    order = {Path(place).stem: number for number, room in enumerate(ROOMS) for place in room.places}
    upward = [(room.name, name) for room in PACKAGE for name in room.imports if order[name] <= order[room.name]]
    assert upward == []


@pytest.mark.parametrize("room", [room for room in PACKAGE if room.never], ids=lambda room: room.name)
def test_a_room_never_imports(room):
    wrong = [(f.name, name) for f in room.files() for name in imported(f) if name.split(".")[0] in room.never]
    assert wrong == []


@pytest.mark.parametrize("room", [room for room in PACKAGE if "torch" in room.never], ids=lambda room: room.name)
def test_nor_by_way_of_others(room):
    """Loading all of a room's modules loads none of these. (`plugin` loads whatever the hooks need.)"""
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in room.files()]
    modules = [name.removesuffix(".__init__") for name in modules if not name.endswith((".__main__", ".plugin"))]
    lines = [*(f"import {name}" for name in modules), f"print([n for n in {sorted(room.never)} if n in sys.modules])"]
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# ---- lines: what a reader pays


def counted(name: str) -> bool:
    return name.endswith((".py", ".sh", ".sbatch", ".md", ".yaml")) or "Dockerfile" in name


def budgets() -> dict[tuple[str, ...], int]:
    """CONTRIBUTING's table of lines: the places of a row, and how many lines they may have."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("### How much of it there may be")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| ([\d,]+) \| [\d,]+ \|$", table, flags=re.MULTILINE)
    return {tuple(re.findall(r"`(.*?)`", places)): int(most.replace(",", "")) for places, most in rows}


def lines_of(places: tuple[str, ...]) -> int:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *places], cwd=ROOT, capture_output=True, check=True, text=True
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if counted(name)]
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


@pytest.mark.parametrize(("places", "most"), budgets().items(), ids=lambda value: str(value)[:40])
def test_a_room_has_no_more_lines_than_the_table_says(places, most):
    """A room that would grow gives something up first, or takes a library; then the table may go down with it."""
    assert 0 < lines_of(places) <= most


def test_every_file_is_in_the_table_of_lines():
    """But for what stands at the top level, and what the platform wants."""
    places = [place for row in budgets() for place in row]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=True, text=True).stdout.split()
    homeless = [
        n for n in listed if counted(n) and not any(n == p or n.startswith(p.rstrip("/") + "/") for p in places)
    ]
    allowed = re.compile(r"\.ci/|\.github/|\.pre-commit|CHANGELOG|SECURITY|setup\.py|gpg_verl/(__init__\.py|presets/)")
    assert [name for name in homeless if not allowed.match(name)] == []


def test_examples_know_nothing_of_tests():
    tests = {file.stem for file in (ROOT / "tests").rglob("*.py")}
    files = sorted((ROOT / "examples").rglob("*.py"))
    # `actors` and others of the benchmarks are imported by name from their own folder.
    own = {file.stem for file in files}
    wrong = [(f.name, n) for f in files for n in imported(f) if n.split(".")[0] in tests - own | {"tests"}]
    scripts = [file for file in (ROOT / "examples").rglob("*") if file.suffix in (".sh", ".py")]
    named = [file.name for file in scripts if re.search(r"\btests/", file.read_text(encoding="utf-8"))]
    assert scripts
    assert (wrong, named) == ([], [])


def test_guards_do_not_know_what_is_trained():
    """They could be offered to veRL: no setting of `algorithm.gpg`, no β_th, no advantage. (`GPG_GRACE` is a name.)"""
    files = next(room for room in ROOMS if room.name == "guards").files()
    words = re.compile(r"GPG(?! or not|_GRACE)|algorithm\.gpg|β_th|advantage")
    found = {file.name: words.findall(file.read_text(encoding="utf-8")) for file in files}
    assert {name: words for name, words in found.items() if words} == {}
