"""What gpg_verl takes for granted of veRL, read out of gpg_verl's source, held against a veRL that is installed.

Nothing is run: names are looked up, calls are bound to signatures, overriding methods compared with the overridden
ones, config keys looked up in veRL's composed config. Each function returns what no longer fits, one line each, naming
veRL's place and ours.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

PACKAGE = Path(__file__).parents[1] / "gpg_verl"
ROOTS = ("verl", "transfer_queue")


def files() -> Iterator[tuple[str, ast.Module]]:
    """(path, tree) of each module of the package."""
    for file in sorted(PACKAGE.rglob("*.py")):
        yield file.relative_to(PACKAGE.parent).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def theirs(module: str | None) -> bool:
    return (module or "").partition(".")[0] in ROOTS


def place_of(thing) -> str:
    return thing.__name__ if inspect.ismodule(thing) else f"{thing.__module__}.{thing.__qualname__}"


def import_or_gone(name: str) -> Any:
    """A module or `module:attribute`; raises LookupError saying what is gone."""
    module, _, path = name.partition(":")
    try:
        thing = importlib.import_module(module)
    except Exception as error:
        raise LookupError(f"{module} does not import ({type(error).__name__}: {error})") from None
    for part in filter(None, path.split(".")):
        if not hasattr(thing, part):
            raise LookupError(f"{place_of(thing)}.{part} is gone")
        thing = getattr(thing, part)
    return thing


# ---- names that are imported, and calls of them


def imported(path: str, tree: ast.Module) -> tuple[dict[str, Any], list[str]]:
    """What of veRL's stands under which name in a module of ours, and what is gone."""
    names, gone = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and theirs(node.module):
            for alias in node.names:
                try:
                    try:
                        thing = import_or_gone(f"{node.module}:{alias.name}")
                    except LookupError:
                        if importlib.util.find_spec(f"{node.module}.{alias.name}") is None:
                            raise
                        thing = import_or_gone(f"{node.module}.{alias.name}")
                    names[alias.asname or alias.name] = thing
                except (LookupError, ImportError) as error:
                    gone.append(f"{error}: imported by {path}:{node.lineno}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if theirs(alias.name):
                    try:
                        thing = import_or_gone(alias.name)
                        names[alias.asname or alias.name] = thing
                    except LookupError as error:
                        gone.append(f"{error}: imported by {path}:{node.lineno}")
    return names, gone


def unfit_names(path: str, tree: ast.Module) -> list[str]:
    """Imports, attributes of imported modules, and calls of imported functions that no longer fit."""
    names, unfit = imported(path, tree)

    def resolve(node) -> Any:
        """The thing of veRL's that an expression names; None where it is none."""
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = names.get(ast.unparse(node.value)) if "." in ast.unparse(node.value) else resolve(node.value)
            if inspect.ismodule(owner):
                if not hasattr(owner, node.attr):
                    raise LookupError(f"{place_of(owner)}.{node.attr} is gone: used by {path}:{node.lineno}")
                return getattr(owner, node.attr)
        return None

    for node in ast.walk(tree):
        try:
            thing = resolve(node) if isinstance(node, ast.Attribute) else None
            if isinstance(node, ast.Call) and callable(thing := resolve(node.func)):
                unfit += unbindable(thing, node, f"{path}:{node.lineno}")
        except LookupError as error:
            unfit.append(str(error))
    return sorted(set(unfit))


def unbindable(function, call: ast.Call, where: str, bound: bool = True) -> list[str]:
    """Whether a function still takes what a call gives it; `bound`: without a `self`."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return []
    names = {keyword.arg: None for keyword in call.keywords if keyword.arg}
    values = [None] * sum(not isinstance(argument, ast.Starred) for argument in call.args)
    open_ended = len(values) < len(call.args) or len(names) < len(call.keywords)
    try:
        bind = signature.bind_partial if open_ended else signature.bind
        bind(*([] if bound else [None]), *values, **names)
    except TypeError as error:
        return [f"{place_of(function)}{signature} does not take what {where} gives it ({error})"]
    return []


# ---- classes of ours that derive from veRL's


def derived() -> set[str]:
    """`module:class` of every class of the package that derives from veRL's."""
    found = set()
    for path, tree in files():
        if uses(tree):
            name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            found |= {
                f"{name}:{thing.__name__}"
                for thing in vars(importlib.import_module(name)).values()
                if inspect.isclass(thing)
                and thing.__module__ == name
                and any(theirs(k.__module__) for k in thing.__mro__)
            }
    return found


def parts(cls: type) -> tuple[list[type], list[type]]:
    """(ours, veRL's) of the classes that it is made of."""
    ours = [k for k in cls.__mro__ if k.__module__.partition(".")[0] == "gpg_verl"]
    return ours, [k for k in cls.__mro__ if theirs(k.__module__)]


def overridden(cls: type) -> set[str]:
    """The names that ours replace in veRL's part of a class."""
    ours, verls = parts(cls)
    of_verl = {name for k in verls for name in vars(k)}
    return {name for k in ours for name in vars(k) if name in of_verl and name not in CLASS_NAMES}


CLASS_NAMES = {
    "__module__",
    "__doc__",
    "__dict__",
    "__weakref__",
    "__abstractmethods__",
    "_abc_impl",
    "__annotations__",
}


def unfit_class(cls: type, expected: set[str]) -> list[str]:
    """What a class of ours replaces, calls and reads in its veRL base, where that is no longer there or takes other
    arguments.

    Args:
        expected: what it is meant to replace.
    """
    ours, verls = parts(cls)
    base = place_of(verls[0])
    found = overridden(cls)
    unfit = [f"{base}.{name} is gone: replaced by {cls.__name__}.{name}" for name in sorted(expected - found)]
    unfit += [
        f"{base}.{name} is there: {cls.__name__}.{name} replaces it, and was not meant to"
        for name in sorted(found - expected)
    ]
    if abstract := sorted(getattr(cls, "__abstractmethods__", ())):
        unfit.append(f"{base} asks for {', '.join(abstract)}: {cls.__name__} has none")
    for name in sorted(expected & found):
        own = next(vars(k)[name] for k in ours if name in vars(k))
        verls_own = next(vars(k)[name] for k in verls if name in vars(k))
        if inspect.isfunction(own) and inspect.isfunction(verls_own):
            unfit += narrower(own, verls_own)
        elif isinstance(own, property) != isinstance(verls_own, property):
            unfit.append(f"{base}.{name} is a property or no longer one: replaced by {cls.__name__}.{name}")
    given = set(dir(cls)) | {name for k in (*ours, *verls) for name in set_by(k)}
    for k in ours:
        tree, first = source_of(k)
        for node in ast.walk(tree):
            where = f"{k.__module__.replace('.', '/')}.py:{first + getattr(node, 'lineno', 0) - 1}"
            if isinstance(node, ast.Call) and (name := super_call(node)) and not name.startswith("__"):
                method = next((vars(v)[name] for v in verls if name in vars(v)), None)
                if method is not None:
                    unfit += unbindable(method, node, where, bound=False)
                elif not any(name in vars(o) for o in ours if o is not k):
                    unfit.append(f"{base}.{name} is gone: called by {where}")
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self" and node.attr not in given:
                unfit.append(f"{base} has no `self.{node.attr}` any more: read by {where}")
    return sorted(set(unfit))


def narrower(own, verls) -> list[str]:
    """Whether a method of ours takes all that the one which it replaces takes, at the same positions and names."""
    mine, other = (list(inspect.signature(f).parameters.values()) for f in (own, verls))
    any_position = any(p.kind is p.VAR_POSITIONAL for p in mine)
    any_name = any(p.kind is p.VAR_KEYWORD for p in mine)
    named = {p.name: i for i, p in enumerate(mine) if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    missing = [
        p.name
        for i, p in enumerate(other)
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and named.get(p.name, i if any_position or any_name else -1) != i
    ]
    needless = [
        p.name for p in mine if p.default is p.empty and p.name in named and p.name not in [o.name for o in other]
    ]
    if not missing and not needless:
        return []
    return [f"{place_of(verls)}{inspect.signature(verls)} is not what {place_of(own)}{inspect.signature(own)} replaces"]


def super_call(call: ast.Call) -> str | None:
    f = call.func
    if isinstance(f, ast.Attribute) and isinstance(f.value, ast.Call) and ast.unparse(f.value) == "super()":
        return f.attr
    return None


@functools.cache
def source_of(cls: type) -> tuple[ast.Module, int]:
    lines, first = inspect.getsourcelines(cls)
    return ast.parse(textwrap.dedent("".join(lines))), first


def set_by(cls: type) -> set[str]:
    """The attributes that a class's methods give `self`, and those that it declares."""
    names = set()
    for node in ast.walk(source_of(cls)[0]):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def unfit_object(owner: str, attributes: list[str], where: str) -> list[str]:
    """Attributes of a veRL object that ours use, which its class (`module:Class`) neither has nor sets."""
    try:
        cls = import_or_gone(owner)
    except LookupError as error:
        return [f"{error}: used by {where}"]
    if not inspect.isclass(cls):  # a Ray actor class wraps it
        cls = getattr(getattr(cls, "__ray_metadata__", None), "modified_class", cls)
    have = set(dir(cls)) | {name for k in cls.__mro__ if theirs(k.__module__) for name in set_by(k)}
    return [f"{place_of(cls)}.{name} is gone: used by {where}" for name in attributes if name not in have]


# ---- patched places


def seams() -> dict[tuple[str, str], tuple[str, ...]]:
    """(file, name) → parameters of every place that is fetched through `seams.seam`."""
    found = {}
    for path, tree in files():
        assigned = {ast.unparse(node.targets[0]): node.value for node in ast.walk(tree) if isinstance(node, ast.Assign)}
        for node in ast.walk(tree):
            if isinstance(node, ast.For) and isinstance(node.iter, ast.Call) and "seam(" in ast.unparse(node):
                table = node.iter.func.value if isinstance(node.iter.func, ast.Attribute) else None
                for name, parameters in ast.literal_eval(table).items() if isinstance(table, ast.Dict) else ():
                    found[path, name] = ("self", *parameters)
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "seam"
                and isinstance(node.args[1], ast.Constant)
            ):
                parameters = assigned.get(ast.unparse(node.args[2]), node.args[2])
                found[path, node.args[1].value] = ast.literal_eval(parameters)
    return found


# ---- config keys

KEY = re.compile(r"(actor_rollout_ref|algorithm|critic|data|distillation|reward|trainer)(\.[a-z0-9_]+)+")


def config_keys(path: str, tree: ast.Module) -> dict[str, int]:
    """Key → line of what a module of ours reads of veRL's whole config: attribute chains from `config` or
    `self.config`, and dotted keys in strings.
    """
    keys: dict[str, int] = {}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
        names: dict[str, str] = {}
        looped = {
            name.id
            for node in ast.walk(function)
            if isinstance(node, ast.For | ast.comprehension)
            for name in ast.walk(node.target)
            if isinstance(name, ast.Name)
        }

        def chain(node, names=names) -> str | None:
            if ast.unparse(node) in ("config", "self.config"):
                return ""
            if isinstance(node, ast.Name):
                return names.get(node.id)
            if isinstance(node, ast.Attribute) and (prefix := chain(node.value)) is not None:
                return f"{prefix}.{node.attr}".lstrip(".")
            called = node.func if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
            if called is not None and called.attr == "get" and node.args and isinstance(node.args[0], ast.Constant):
                prefix = chain(called.value)
                return None if prefix is None else f"{prefix}.{node.args[0].value}".lstrip(".")
            return None

        def text(node, names=names) -> str | None:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                return node.value
            if isinstance(node, ast.JoinedStr):
                pieces = [text(v.value if isinstance(v, ast.FormattedValue) else v) for v in node.values]
                return None if None in pieces else "".join(pieces)
            return names.get(f"str {ast.unparse(node)}")

        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                pairs = [(node.targets[0], node.value)]
                if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(node.targets[0].elts, node.value.elts, strict=False))
                for target, value in pairs:
                    if (key := chain(value)) and isinstance(target, ast.Name):
                        names[target.id] = key
                    if (key := text(value)) is not None and ast.unparse(target) not in looped:
                        names[f"str {ast.unparse(target)}"] = key
        for node in ast.walk(function):
            key = chain(node) if isinstance(node, ast.Attribute | ast.Call) else None
            if key is None and isinstance(node, ast.Constant | ast.JoinedStr):
                key = text(node)
                key = key if key and KEY.fullmatch(key) else None
            if key:
                keys.setdefault(key, node.lineno)
    return keys


def missing_key(config: DictConfig, key: str) -> str | None:
    """The first part of a key that the config does not have; None where it has all, or ends earlier in a value."""
    node: Any = config
    done: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            return None
        done.append(part)
        if part not in node.keys():  # noqa: SIM118  `in` takes a value that is still to be given for missing
            return None if hasattr(DictConfig, part) else ".".join(done)
        node = node._get_node(part)
        node = node if isinstance(node, DictConfig) else None
    return None


def uses(tree: ast.Module) -> bool:
    """Whether a module of ours imports anything of veRL's."""
    return any(
        theirs(node.module) if isinstance(node, ast.ImportFrom) else any(theirs(alias.name) for alias in node.names)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Import)
    )


def attributes_of(tree: ast.Module, variable: str) -> set[str]:
    """What a module of ours reads, calls or sets of the object in a variable."""
    return {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == variable
    }
