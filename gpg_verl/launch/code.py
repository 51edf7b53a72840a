"""The user's own Python files, agent loops and tools: what veRL could not load or call, found without running them."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import symtable
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from gpg_verl.launch.facts import Facts
from gpg_verl.launch.prompts import VERLS_LOOPS
from gpg_verl.launch.settle import REWARD_MANAGER

ROLLOUT = "actor_rollout_ref.rollout"
# What veRL's reward managers and ours hand to a reward function, by name.
HANDED_TO_REWARDS = ("data_source", "solution_str", "ground_truth", "extra_info")
HANDED_WITH_REWARD_MODEL = ("reward_router_address", "reward_model_tokenizer")


@dataclass(frozen=True)
class Fault:
    """lacking: the file or package is not on this machine, and may be on others."""

    text: str
    lacking: bool = False


def missing_code(facts: Facts) -> str | None:
    return "; ".join(fault.text for fault in faults(facts) if fault.lacking) or None


def broken_code(facts: Facts) -> str | None:
    return "; ".join(fault.text for fault in faults(facts) if not fault.lacking) or None


def faults(facts: Facts) -> Iterator[Fault]:
    """What is wrong with everything that veRL loads from a file or package of the user's."""
    for path_key, name_key in loaded(facts):
        path, name = facts.get(path_key), facts.get(name_key)
        if fault := why_not_loaded(path, name):
            more = f"; name what it defines as {name_key}" if "does not define" in fault.text else ""
            yield Fault(f"{path_key}={path}: {fault.text}{more}", fault.lacking)
    if manager := facts.get(f"{ROLLOUT}.agent.agent_loop_manager_class"):
        yield from _of_class(f"{ROLLOUT}.agent.agent_loop_manager_class={manager}", manager)
    yield from _of_yaml(facts, f"{ROLLOUT}.agent.agent_loop_config_path", None, "_target_")
    yield from _of_yaml(facts, f"{ROLLOUT}.multi_turn.tool_config_path", "tools", "class_name")
    functions = facts.get(f"{ROLLOUT}.multi_turn.function_tool_path")
    if functions and (fault := why_not_loaded(str(_found(functions) or functions), None)):
        yield Fault(f"{ROLLOUT}.multi_turn.function_tool_path={functions}: {fault.text}", fault.lacking)


def loaded(facts: Facts) -> Iterator[tuple[str, str]]:
    """(key of a path, key of the name in it) that this run loads."""
    used = {
        "reward.custom_reward_function": True,
        "reward.reward_manager.module": facts.get("reward.reward_manager.source") == "importlib",
        "data.custom_cls": True,
        "trainer.v1.sampler.custom_sampler": facts.get("trainer.v1.sampler.custom_sampler.name"),
    }
    for node, is_used in used.items():
        if is_used and facts.get(f"{node}.path"):
            yield f"{node}.path", f"{node.removesuffix('.module')}.name"


def why_not_loaded(path: str, name: str | None) -> Fault | None:
    """Why `name` cannot be taken from a file or a `pkg://` package."""
    if path.startswith("pkg://"):
        try:
            spec = importlib.util.find_spec(path.removeprefix("pkg://").replace("/", "."))
        except ModuleNotFoundError:
            spec = None
        except Exception as error:  # whatever a package above it raises
            return Fault(f"cannot be imported ({type(error).__name__}: {error})")
        if spec is None:
            return Fault("no such package; install it, or correct the name", lacking=True)
        if not (spec.origin or "").endswith(".py"):
            return None  # compiled, or without code of its own
    elif not source_of(path).is_file():
        return Fault("no such file; make it, or correct the path", lacking=True)
    try:
        text = read_source(path)
        table, tree = symtable.symtable(text, str(source_of(path)), "exec"), ast.parse(text)
    except (SyntaxError, ValueError, OSError) as error:
        return Fault(f"cannot be loaded ({type(error).__name__}: {error}); mend it")
    names = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    stars = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree))
    return None if name is None or stars or {name, "__getattr__"} & names else Fault(f"does not define {name}")


def source_of(path: str) -> Path:
    if path.startswith("pkg://"):
        return Path(importlib.util.find_spec(path.removeprefix("pkg://").replace("/", ".")).origin)
    return Path(path.removeprefix("file://"))


def read_source(path: str) -> str:
    with tokenize.open(source_of(path)) as opened:
        return opened.read()


def _of_class(where: str, dotted: str) -> Iterator[Fault]:
    module, _, name = dotted.rpartition(".")
    fault = why_not_loaded(f"pkg://{module}", name) if module else Fault("expected a name as module.Class")
    if fault:
        yield Fault(f"{where}: {fault.text}", fault.lacking)


def _of_yaml(facts: Facts, key: str, node: str | None, class_key: str) -> Iterator[Fault]:
    """What stands against a YAML file that names classes: agent loops, tools."""
    if not (path := facts.get(key)):
        return
    if (file := _found(path)) is None:
        yield Fault(f"{key}={path}: no such file; make it, or correct the path", lacking=True)
        return
    try:
        entries = OmegaConf.load(file)
        classes = [entry[class_key] for entry in (entries if node is None else entries[node])]
    except Exception as error:  # of YAML, or of OmegaConf
        yield Fault(f"{key}={path}: cannot be read ({' '.join(str(error).split())}); mend it")
        return
    for dotted in classes:
        yield from _of_class(f"{key}={path}: {class_key}={dotted}", dotted)


def _found(path: str) -> Path | None:
    """Where veRL's workers find this file, if it is on this machine."""
    from verl.utils.import_utils import resolve_config_path

    try:
        file = resolve_config_path(os.path.expanduser(path))
    except FileNotFoundError:
        return None
    return Path(file) if os.path.isfile(file) else None


def unknown_agent_loop(facts: Facts) -> str | None:
    """A name that no agent loop is registered under: veRL says so of each session, and trains on none."""
    key = f"{ROLLOUT}.agent.default_agent_loop"
    named, path = facts.get(key), facts.get(f"{ROLLOUT}.agent.agent_loop_config_path")
    # What registers agent loops by their decorator is code that is not run here.
    registers = os.environ.get("VERL_USE_EXTERNAL_MODULES") or facts.get(f"{ROLLOUT}.agent.agent_loop_manager_class")
    every_row = all("agent_name" in file.features for split in facts.splits for file in split.files)
    file = _found(path) if path else None
    if registers or (path and file is None) or (every_row and facts.train.files):
        return None
    try:
        known = [*VERLS_LOOPS, *(entry.name for entry in (OmegaConf.load(file) if file else ()))]
    except Exception:  # said above
        return None
    if named in known:
        return None
    return (
        f"{key}={named}: no agent loop has this name, known are {', '.join(known)}; name one of them, or a file that "
        f"has it as {ROLLOUT}.agent.agent_loop_config_path"
    )


def reward_signature(facts: Facts) -> str | None:
    """A reward function that cannot be called as veRL calls it, which would show at the first answer."""
    key = "reward.custom_reward_function"
    path, name = facts.get(f"{key}.path"), facts.get(f"{key}.name")
    source = facts.get("reward.reward_manager.source")
    ours = facts.get("reward.reward_manager.module.path") == REWARD_MANAGER["module.path"]
    if not path or (source != "register" and not ours) or why_not_loaded(path, name):
        return None
    defined = [node for node in ast.parse(read_source(path)).body if getattr(node, "name", None) == name]
    if not defined or not isinstance(defined[-1], ast.FunctionDef | ast.AsyncFunctionDef) or defined[-1].decorator_list:
        return None
    handed = dict.fromkeys([*HANDED_TO_REWARDS, *(facts.get(key).get("reward_kwargs") or {})])
    if facts.get("reward.reward_model.enable"):
        handed |= dict.fromkeys(HANDED_WITH_REWARD_MODEL)
    try:
        signature(defined[-1].args).bind(**handed)
    except TypeError as error:
        return (
            f"{key}.path={path}: {name}({ast.unparse(defined[-1].args)}) {error}; veRL calls it by name with "
            f"{', '.join(handed)}: write def {name}({', '.join(HANDED_TO_REWARDS)}, **kwargs)"
        )
    return None


def signature(arguments: ast.arguments) -> inspect.Signature:
    """Of a function that is read, not run."""
    kinds = inspect.Parameter
    by_place = [(argument, kinds.POSITIONAL_ONLY) for argument in arguments.posonlyargs]
    by_place += [(argument, kinds.POSITIONAL_OR_KEYWORD) for argument in arguments.args]
    required = len(by_place) - len(arguments.defaults)
    found = [
        kinds(argument.arg, kind, default=kinds.empty if place < required else None)
        for place, (argument, kind) in enumerate(by_place)
    ]
    if arguments.vararg:
        found.append(kinds(arguments.vararg.arg, kinds.VAR_POSITIONAL))
    found += [
        kinds(argument.arg, kinds.KEYWORD_ONLY, default=kinds.empty if default is None else None)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        found.append(kinds(arguments.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(found)
