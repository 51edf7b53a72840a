"""The user's own Python files, agent loops and tools: what veRL could not load or call, found without running them."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import symtable
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from gpg_verl.compat.versions import LocalProblem
from gpg_verl.launch.facts import Facts
from gpg_verl.launch.prompts import VERLS_LOOPS

REWARD, MANAGER = "reward.custom_reward_function", "reward.reward_manager"
# Where a file or package is named, and the node that has the name of what is taken from it.
NAMED = {
    f"{REWARD}.path": REWARD,
    f"{MANAGER}.module.path": MANAGER,
    "data.custom_cls.path": "data.custom_cls",
    "trainer.v1.sampler.custom_sampler.path": "trainer.v1.sampler.custom_sampler",
}
AGENT, TOOLS = "actor_rollout_ref.rollout.agent", "actor_rollout_ref.rollout.multi_turn"
# What veRL's reward managers and ours hand to a reward function, by name.
HANDED_TO_REWARDS = ("data_source", "solution_str", "ground_truth", "extra_info")
HANDED_WITH_REWARD_MODEL = ("reward_router_address", "reward_model_tokenizer")
NO_FILE = LocalProblem("no such file; make it, or correct the path")


def unusable_code(facts: Facts) -> Iterator[str]:
    """What is wrong with everything that veRL loads from a file or package of the user's."""
    named = [  # where it is named, the file or package, what is taken from it, the key that says so
        (f"{key}={path}", path, facts.get(f"{node}.name"), f"{node}.name")
        for key, node in NAMED.items()
        if (path := facts.get(key)) and (node != MANAGER or facts.get(f"{MANAGER}.source") == "importlib")
    ]
    if path := facts.get(f"{TOOLS}.function_tool_path"):
        named.append((f"{TOOLS}.function_tool_path={path}", resolved(path), None, None))
    if dotted := facts.get(f"{AGENT}.agent_loop_manager_class"):
        named.append((f"{AGENT}.agent_loop_manager_class={dotted}", *_module_and_class(dotted)))
    for key, node, class_key in (
        (f"{AGENT}.agent_loop_config_path", None, "_target_"),
        (f"{TOOLS}.tool_config_path", "tools", "class_name"),
    ):
        try:
            entries = OmegaConf.load(resolved(facts.get(key))) if facts.get(key) else []
            classes = [entry[class_key] for entry in (entries[node] if node and entries else entries)]
        except FileNotFoundError:
            yield LocalProblem(f"{key}={facts.get(key)}: {NO_FILE}")
        except Exception as error:  # of YAML, or of OmegaConf
            yield f"{key}={facts.get(key)}: cannot be read ({' '.join(str(error).split())}); mend it"
        else:
            where = f"{key}={facts.get(key)}: {class_key}="
            named += [(f"{where}{dotted}", *_module_and_class(dotted)) for dotted in classes]
    for where, path, name, name_key in named:
        if fault := why_not_loaded(path, name):
            hint = f"; name what it defines as {name_key}" if name_key and "does not define" in fault else ""
            yield type(fault)(f"{where}: {fault}{hint}")


def _module_and_class(dotted: str) -> tuple[str, str, None]:
    module, _, name = dotted.rpartition(".")
    return f"pkg://{module}", name, None


def resolved(path: str) -> str:
    """Where veRL's workers find this file."""
    from verl.utils.import_utils import resolve_config_path

    with contextlib.suppress(FileNotFoundError):
        return resolve_config_path(os.path.expanduser(path))
    return path


def why_not_loaded(path: str, name: str | None = None) -> str | None:
    """Why a file or a `pkg://` package cannot be loaded, or `name` not be taken from it; a LocalProblem where it is
    not on this machine.
    """
    try:
        file = source_of(path)
    except ModuleNotFoundError:
        file = None
    except Exception as error:  # whatever a package above it raises
        return f"cannot be imported ({type(error).__name__}: {error})"
    if file is None:
        return LocalProblem("no such package; install it, or correct the name")
    if path.startswith("pkg://") and file.suffix != ".py":
        return None  # compiled, or without code of its own
    if not file.is_file():
        return NO_FILE
    try:
        table, tree = symtable.symtable(file.read_bytes(), str(file), "exec"), ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError) as error:
        return f"cannot be loaded ({type(error).__name__}: {error}); mend it"
    names = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    stars = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree))
    return None if name is None or stars or {name, "__getattr__"} & names else f"does not define {name}"


def source_of(path: str) -> Path | None:
    """The file of a path or a `pkg://` package; None where there is no such package."""
    if not path.startswith("pkg://"):
        return Path(path.removeprefix("file://"))
    spec = importlib.util.find_spec(path.removeprefix("pkg://").replace("/", "."))
    return None if spec is None else Path(spec.origin or "")


def unknown_agent_loop(facts: Facts) -> Iterator[str]:
    """A name that no agent loop is registered under: veRL says so of each session, and trains on none."""
    named, path = facts.get(f"{AGENT}.default_agent_loop"), facts.get(f"{AGENT}.agent_loop_config_path")
    # What registers agent loops by their decorator is code that is not run here.
    registers = os.environ.get("VERL_USE_EXTERNAL_MODULES") or facts.get(f"{AGENT}.agent_loop_manager_class")
    files = [file for split in facts.splits for file in split.files]
    if registers or (files and all("agent_name" in file.features for file in files)):
        return
    try:
        known = [*VERLS_LOOPS, *(entry.name for entry in (OmegaConf.load(resolved(path)) if path else ()))]
    except Exception:  # said of the file
        return
    if named not in known:
        yield (
            f"{AGENT}.default_agent_loop={named}: no agent loop has this name, known are {', '.join(known)}; name one "
            f"of them, or a file that has it as {AGENT}.agent_loop_config_path"
        )


def reward_signature(facts: Facts) -> Iterator[str]:
    """A reward function that cannot be called as veRL calls it, which would show at the first answer."""
    path, name = facts.get(f"{REWARD}.path"), facts.get(f"{REWARD}.name")
    if not path or not facts.known_reward_manager or why_not_loaded(path, name):
        return
    defined = [node for node in ast.parse(source_of(path).read_bytes()).body if getattr(node, "name", None) == name]
    if not defined or not isinstance(defined[-1], ast.FunctionDef | ast.AsyncFunctionDef) or defined[-1].decorator_list:
        return
    handed = [*HANDED_TO_REWARDS, *(facts.get(f"{REWARD}.reward_kwargs") or {})]
    if facts.get("reward.reward_model.enable"):
        handed += HANDED_WITH_REWARD_MODEL
    takes = defined[-1].args
    by_name = {arg.arg for arg in (*takes.args, *takes.kwonlyargs)}
    needed = [arg.arg for arg in (*takes.posonlyargs, *takes.args[: len(takes.args) - len(takes.defaults)])]
    needed += [arg.arg for arg, default in zip(takes.kwonlyargs, takes.kw_defaults, strict=True) if default is None]
    wrong = [f"missing a required argument: {arg!r}" for arg in needed if arg not in by_name.intersection(handed)]
    wrong += [f"got an unexpected argument {arg!r}" for arg in handed if not (arg in by_name or takes.kwarg)]
    if wrong:
        yield (
            f"{REWARD}.path={path}: {name}({ast.unparse(takes)}) {wrong[0]}; veRL calls it by name with "
            f"{', '.join(handed)}: write def {name}({', '.join(HANDED_TO_REWARDS)}, **kwargs)"
        )
