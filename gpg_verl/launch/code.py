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

AGENT, TOOLS = "actor_rollout_ref.rollout.agent", "actor_rollout_ref.rollout.multi_turn"
# What veRL's reward managers and ours hand to a reward function, by name.
HANDED_TO_REWARDS = ("data_source", "solution_str", "ground_truth", "extra_info")
HANDED_WITH_REWARD_MODEL = ("reward_router_address", "reward_model_tokenizer")


@dataclass(frozen=True)
class Fault:
    """lacking: the file or package is not on this machine, and may be on others."""

    text: str
    lacking: bool = False


NO_FILE = Fault("no such file; make it, or correct the path", lacking=True)


def missing_code(facts: Facts) -> str | None:
    return "; ".join(fault.text for fault in faults(facts) if fault.lacking) or None


def broken_code(facts: Facts) -> str | None:
    return "; ".join(fault.text for fault in faults(facts) if not fault.lacking) or None


def faults(facts: Facts) -> Iterator[Fault]:
    """What is wrong with everything that veRL loads from a file or package of the user's."""
    for where, fault in (*_named_code(facts), *_named_classes(facts)):
        if fault is not None:
            yield Fault(f"{where}: {fault.text}", fault.lacking)


def _named_code(facts: Facts) -> Iterator[tuple[str, Fault | None]]:
    """(`key=path`, what is wrong) of each file or package that has a name for the run."""
    used = {
        "reward.custom_reward_function": True,
        "reward.reward_manager.module": facts.get("reward.reward_manager.source") == "importlib",
        "data.custom_cls": True,
        "trainer.v1.sampler.custom_sampler": facts.get("trainer.v1.sampler.custom_sampler.name"),
    }
    for node, is_used in used.items():
        path, name_key = facts.get(f"{node}.path"), f"{node.removesuffix('.module')}.name"
        if path and is_used:
            fault = why_not_loaded(path, facts.get(name_key))
            if fault and "does not define" in fault.text:
                fault = Fault(f"{fault.text}; name what it defines as {name_key}")
            yield f"{node}.path={path}", fault
    if path := facts.get(f"{TOOLS}.function_tool_path"):
        file = found(path)
        yield f"{TOOLS}.function_tool_path={path}", why_not_loaded(str(file)) if file else NO_FILE


def _named_classes(facts: Facts) -> Iterator[tuple[str, Fault | None]]:
    """The same of classes: the agent loop manager's, and what YAML files name as agent loops and tools."""
    if manager := facts.get(f"{AGENT}.agent_loop_manager_class"):
        yield f"{AGENT}.agent_loop_manager_class={manager}", _why_no_class(manager)
    for key, node, class_key in (
        (f"{AGENT}.agent_loop_config_path", None, "_target_"),
        (f"{TOOLS}.tool_config_path", "tools", "class_name"),
    ):
        if not (path := facts.get(key)):
            continue
        if (file := found(path)) is None:
            yield f"{key}={path}", NO_FILE
            continue
        try:
            entries = OmegaConf.load(file)
            classes = [entry[class_key] for entry in (entries if node is None else entries[node])]
        except Exception as error:  # of YAML, or of OmegaConf
            yield f"{key}={path}", Fault(f"cannot be read ({' '.join(str(error).split())}); mend it")
        else:
            for dotted in classes:
                yield f"{key}={path}: {class_key}={dotted}", _why_no_class(dotted)


def _why_no_class(dotted: str) -> Fault | None:
    module, _, name = dotted.rpartition(".")
    return why_not_loaded(f"pkg://{module}", name) if module else Fault("expected a name as module.Class")


def why_not_loaded(path: str, name: str | None = None) -> Fault | None:
    """Why a file or a `pkg://` package cannot be loaded, or `name` not be taken from it."""
    try:
        file = source_of(path)
    except Exception as error:  # whatever a package above it raises
        return Fault(f"cannot be imported ({type(error).__name__}: {error})")
    if file is None:
        return Fault("no such package; install it, or correct the name", lacking=True)
    if path.startswith("pkg://") and file.suffix != ".py":
        return None  # compiled, or without code of its own
    if not file.is_file():
        return NO_FILE
    try:
        text = read_source(file)
        table, tree = symtable.symtable(text, str(file), "exec"), ast.parse(text)
    except (SyntaxError, ValueError, OSError) as error:
        return Fault(f"cannot be loaded ({type(error).__name__}: {error}); mend it")
    names = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    stars = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree))
    return None if name is None or stars or {name, "__getattr__"} & names else Fault(f"does not define {name}")


def source_of(path: str) -> Path | None:
    """The file of a path or a `pkg://` package; None where there is no such package."""
    if not path.startswith("pkg://"):
        return Path(path.removeprefix("file://"))
    try:
        spec = importlib.util.find_spec(path.removeprefix("pkg://").replace("/", "."))
    except ModuleNotFoundError:
        return None
    return None if spec is None else Path(spec.origin or "")


def read_source(file: Path) -> str:
    with tokenize.open(file) as opened:
        return opened.read()


def found(path: str) -> Path | None:
    """Where veRL's workers find this file, if it is on this machine."""
    from verl.utils.import_utils import resolve_config_path

    try:
        file = Path(resolve_config_path(os.path.expanduser(path)))
    except FileNotFoundError:
        return None
    return file if file.is_file() else None


def unknown_agent_loop(facts: Facts) -> str | None:
    """A name that no agent loop is registered under: veRL says so of each session, and trains on none."""
    named, path = facts.get(f"{AGENT}.default_agent_loop"), facts.get(f"{AGENT}.agent_loop_config_path")
    # What registers agent loops by their decorator is code that is not run here.
    registers = os.environ.get("VERL_USE_EXTERNAL_MODULES") or facts.get(f"{AGENT}.agent_loop_manager_class")
    files = [file for split in facts.splits for file in split.files]
    if registers or (files and all("agent_name" in file.features for file in files)):
        return None
    try:
        known = [*VERLS_LOOPS, *(entry.name for entry in (OmegaConf.load(found(path)) if path else ()))]
    except Exception:  # said of the file
        return None
    if named in known:
        return None
    return (
        f"{AGENT}.default_agent_loop={named}: no agent loop has this name, known are {', '.join(known)}; name one of "
        f"them, or a file that has it as {AGENT}.agent_loop_config_path"
    )


def reward_signature(facts: Facts) -> str | None:
    """A reward function that cannot be called as veRL calls it, which would show at the first answer."""
    key = "reward.custom_reward_function"
    path, name = facts.get(f"{key}.path"), facts.get(f"{key}.name")
    ours = facts.get("reward.reward_manager.module.path") == REWARD_MANAGER["module.path"]
    known = facts.get("reward.reward_manager.source") == "register" or ours
    if not path or not known or why_not_loaded(path, name):
        return None
    defined = [node for node in ast.parse(read_source(source_of(path))).body if getattr(node, "name", None) == name]
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
    """Of a function that is read, not run: that of a lambda with the same names, whose defaults are null."""
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
    arguments.kw_defaults = [default and ast.Constant(None) for default in arguments.kw_defaults]
    empty = ast.Expression(ast.Lambda(arguments, ast.Constant(None)))
    return inspect.signature(eval(compile(ast.fix_missing_locations(empty), "<signature>", "eval")))
