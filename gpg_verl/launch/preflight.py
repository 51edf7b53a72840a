"""The look at a run before Ray starts: settings, versions, data files, memory. One message, no traceback.

`before_ray` is called with veRL's composed config by `verl.trainer.main_ppo` (see hooks.py); `inspect` is the same
judgement for `python -m gpg_verl check`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

import gpg_verl
from gpg_verl.compat import versions
from gpg_verl.guards import run_folder
from gpg_verl.guards.checkpoints import resume_problems
from gpg_verl.guards.last_words import report_end
from gpg_verl.launch.inputs import data_problems, has_images, model_problems, source_problems
from gpg_verl.launch.machine import (
    attention_contradictions,
    attention_problems,
    disk_problems,
    dummy_loading_is_safe,
    elsewhere,
    memory_problems,
    parted,
    sync_problems,
    version_problems,
    way_past,
)
from gpg_verl.launch.settle import Settled, settle
from gpg_verl.settings import is_gpg


@dataclass
class Findings:
    """What stands against a run. `settings` are contradictions in the config; `files` and `machine` are about where it
    would run, and only a warning for `check`, which may run elsewhere."""

    settled: Settled | None = None
    settings: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    machine: list[str] = field(default_factory=list)

    def all(self) -> list[str]:
        return [*self.machine, *self.settings, *self.files]


def inspect(config: DictConfig, overrides: list[str] | None) -> Findings:
    """Settles what GPG implies in `config` and judges the whole. Never raises for something the user can fix."""
    findings = Findings(machine=version_problems(config))
    findings.settled = settle(config, overrides, images=has_images(config) and not dummy_loading_is_safe(config))
    findings.settings += findings.settled.contradictions
    findings.settings += attention_contradictions(config)
    findings.settings += missing_values(config)
    findings.files += model_problems(config)
    for split in ("train", "val"):
        findings.files += data_problems(config, split) or source_problems(config, split)
    findings.files += resume_problems(config)
    findings.machine += attention_problems(config)
    findings.machine += sync_problems(config)
    findings.machine += memory_problems(config)
    findings.machine += disk_problems(config)
    return findings


def before_ray(config: DictConfig, use_reference_policy: bool, use_critic: bool, validate_config) -> None:
    """Stands in for veRL's `validate_config` in the driver."""
    from gpg_verl.cpu import adopt

    adopt(config)
    if not is_gpg(config):
        return validate_config(config, use_reference_policy, use_critic)

    from verl.trainer.ppo.utils import need_critic, need_reference_policy

    findings = inspect(config, typed_overrides())
    findings.files += run_folder.claim(config)
    stopping, told = parted(findings.all(), elsewhere(config))
    if stopping:
        raise SystemExit(stop_message(stopping))
    try:
        validate_config(config, need_reference_policy(config), need_critic(config))
    except (AssertionError, ValueError, TypeError) as error:
        raise SystemExit(stop_message([f"veRL refuses the configuration: {error}"])) from None
    report_end(is_gpg)
    print("\n".join([*first_lines(findings.settled), *told]), flush=True)


def stop_message(problems: list[str]) -> str:
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return f"\ngpg_verl: this run cannot start.\n{lines}\n{way_past(problems)}"


def first_lines(settled: Settled) -> list[str]:
    """What every GPG run says first: which implementation, which settings, what they imply."""
    import verl

    s = settled.settings
    lines = [
        f"gpg_verl {gpg_verl.__version__} ({Path(gpg_verl.__file__).parent}) on veRL {verl.__version__}: "
        f"adv_estimator=gpg with f_norm={s.f_norm} alpha={s.alpha} beta_th={s.beta_th:g} allow_kl={s.allow_kl}"
    ]
    if (version := versions.tried()) is not None:
        lines.append(f"gpg_verl: veRL {version} is tried ({versions.TRY_VERL}), written for is {versions.VERL}")
    lines += [f"gpg_verl: {c.key}={c.after} ({c.why})" for c in settled.changes]
    lines += [f"gpg_verl: {notice}" for notice in settled.notices]
    return lines


def typed_overrides() -> list[str] | None:
    """What the user typed, where Hydra composed the config; None otherwise."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else None


def missing_values(config: DictConfig) -> list[str]:
    """Settings that veRL needs and has no default for: it would stop deep inside Ray."""
    problems = []
    if OmegaConf.is_missing(config.actor_rollout_ref.rollout, "name"):
        problems.append(
            "actor_rollout_ref.rollout.name is not set: say which engine generates, e.g. "
            "actor_rollout_ref.rollout.name=vllm"
        )
    actor = config.actor_rollout_ref.actor
    if not actor.use_dynamic_bsz:
        for key in (
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu",
        ):
            if OmegaConf.select(config, key) is None:
                problems.append(
                    f"{key} is not set: give a number of rows, or set actor_rollout_ref.actor.use_dynamic_bsz=True"
                )
    return problems
