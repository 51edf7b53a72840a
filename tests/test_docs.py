"""What docs/ says of the code: every patched place is named, and every message to look up is one that exists."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def patched() -> set[str]:
    """The names given to `seam`, as literals or in a table beside it."""
    names = set()
    for file in (ROOT / "gpg_verl").rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "seam":
                if isinstance(call.args[1], ast.Constant):
                    names.add(call.args[1].value)
                else:
                    names |= looped_over(file)
    return names


def looped_over(file: Path) -> set[str]:
    """The keys of the table that a module's loop goes through to call `seam`."""
    loops = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.For)]
    tables = [
        loop.iter.func.value for loop in loops if isinstance(loop.iter, ast.Call) and "seam(" in ast.unparse(loop)
    ]
    return {key.value for table in tables for key in table.keys}


def test_every_patched_place_is_named_with_its_reason():
    text = (ROOT / "docs/seams.md").read_text(encoding="utf-8")
    names = patched()
    assert {"validate_config", "_materialize_batch", "_get_input_embeds", "dispatch_cpu_unquantized_gemm"} <= names
    assert [name for name in sorted(names) if name not in text] == []


# Where the messages of others stand.
OTHERS = {
    "verl": ("trainer/ppo/v1/trainer_base.py", "single_controller/ray/base.py"),
    "vllm": ("v1/core/kv_cache_utils.py", "v1/worker/utils.py"),
}


def text_of(node: ast.AST) -> str:
    """A literal's text, of an f-string without what it puts in."""
    if isinstance(node, ast.JoinedStr):
        return "\0".join(text_of(part) for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def literals() -> str:
    """Every string of the package and of those modules of others."""
    files = [file for folder in ("gpg_verl", "reward_fns") for file in (ROOT / folder).rglob("*.py")]
    for package, modules in OTHERS.items():
        files += [Path(importlib.util.find_spec(package).origin).parent / module for module in modules]
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in files)
    return "\n".join(text_of(node).replace("\0", "") for tree in trees for node in ast.walk(tree))


def messages() -> list[str]:
    """The pieces of messages in docs/troubleshooting.md, without what changes in them (…)."""
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    pieces = [piece.strip() for told in re.findall(r"\*\*`(.+?)`\*\*", text) for piece in told.split("…")]
    return sorted(set(filter(None, pieces)))


@pytest.fixture(scope="module")
def known() -> str:
    return literals()


@pytest.mark.parametrize("piece", messages())
def test_a_message_to_look_up_exists(piece, known):
    assert piece in known or piece == "CUDA out of memory"  # torch's, from C++


def test_there_are_messages():
    assert len(messages()) > 25
