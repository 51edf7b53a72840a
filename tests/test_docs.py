"""docs/seams.md names every place of veRL and vLLM that is patched."""

from __future__ import annotations

import ast
from pathlib import Path

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
