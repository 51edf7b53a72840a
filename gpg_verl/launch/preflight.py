"""The look at a run before Ray starts, one straight line: adopt the config, read the inputs once, settle, judge, claim
the folder, veRL's own validation. What it finds is one message, no traceback.

`before_ray` is called with veRL's composed config by `verl.trainer.main_ppo` (see hooks.py); `look` is the same for
`python -m gpg_verl check`.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

import gpg_verl
from gpg_verl import cpu
from gpg_verl.compat import versions
from gpg_verl.guards import run_folder
from gpg_verl.guards.checkpoints import resume_problems, steps_written_over
from gpg_verl.guards.exit import report_end
from gpg_verl.launch.data_files import read_split
from gpg_verl.launch.inputs import code_problems, data_problems, has_images, last_step, model_problems, samples
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
from gpg_verl.launch.remote import relative_folder, remote_problems
from gpg_verl.launch.settle import Settled, settle
from gpg_verl.settings import is_gpg

# What is counted with before veRL's validation: the least value, and whether it may be left out.
WHOLE_NUMBERS = {
    "data.train_batch_size": (1, False),
    "data.gen_batch_size": (1, True),
    "data.train_max_samples": (-1, False),
    "actor_rollout_ref.actor.ppo_mini_batch_size": (1, False),
    "actor_rollout_ref.actor.ppo_epochs": (1, False),
    "trainer.nnodes": (1, False),
    "trainer.n_gpus_per_node": (1, False),
    "trainer.total_epochs": (1, False),
    "trainer.total_training_steps": (1, True),
    "trainer.save_freq": (None, False),
    "trainer.critic_warmup": (0, False),
    "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes": (0, False),
    "actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes": (0, True),
}
# What is looked up as a name or path, and whether it may be left out.
TEXTS = {
    "actor_rollout_ref.model.path": True,
    "data.prompt_key": False,
    "data.custom_cls.path": True,
    "reward.custom_reward_function.path": True,
    "reward.reward_manager.module.path": True,
    "trainer.default_local_dir": False,
    "trainer.v1.sampler.custom_sampler.path": True,
}

ENGINES = ("megatron", "veomni", "torchtitan")  # veRL's names of a strategy, of its node and of `model_engine`


@dataclass
class Findings:
    """What stands against a run. `settings` are contradictions in the config; `files` and `machine` are about where it
    would run, and only a warning for `check`, which may run elsewhere. `warnings` stop nothing.
    """

    settled: Settled | None = None
    settings: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    machine: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def all(self) -> list[str]:
        return [*self.machine, *self.settings, *self.files]


def look(
    config: DictConfig,
    overrides: list[str] | None,
    validate_config: Callable[[DictConfig, bool, bool], None] | None = None,
    claim: bool = False,
) -> Findings:
    """Settles what GPG implies in `config` and judges the whole. Never raises for something the user can fix.

    Args:
        config: veRL's composed config.
        overrides: what the user typed, where that is known.
        validate_config: veRL's own validation.
        claim: takes the run's folder for this process.
    """
    findings = Findings()
    with _in_words(findings, "the configuration cannot be used"):
        cpu.adopt(config)
        findings.machine += version_problems(config)
        findings.settings += unusable_values(config)
        if findings.settings:
            return findings
        train, val = read_split(config, "train"), read_split(config, "val")
        images = has_images(config, [train, val]) and not dummy_loading_is_safe(config)
        findings.settled = settle(config, overrides, images=images)
        findings.settings += findings.settled.contradictions
        findings.settings += attention_contradictions(config)
        findings.settings += missing_values(config)
        for problem in remote_problems(config):
            (findings.files if isinstance(problem, versions.LocalProblem) else findings.settings).append(problem)
        findings.files += model_problems(config)
        findings.files += data_problems(config, train, val)
        findings.files += code_problems(config)
        findings.files += resume_problems(config)
        findings.machine += attention_problems(config)
        findings.machine += sync_problems(config)
        findings.machine += memory_problems(config)
        findings.machine += disk_problems(config)
        findings.warnings += [*last_step(config, train), *samples([train, val]), *relative_folder(config)]
        findings.warnings += steps_written_over(config)
        if claim and not findings.settings:
            findings.files += run_folder.claim(config)
    if not findings.settings:
        with _in_words(findings, "veRL refuses the configuration"):
            validate(config, validate_config or verls_validation)
    return findings


def validate(config: DictConfig, validate_config: Callable[[DictConfig, bool, bool], None]) -> None:
    """veRL's validation of the settled config, and of the rollout's part, which it leaves to processes behind Ray."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass

    validate_config(config, need_reference_policy(config), need_critic(config))
    omega_conf_to_dataclass(config.actor_rollout_ref.rollout)


def verls_validation(config: DictConfig, use_reference_policy: bool, use_critic: bool) -> None:
    """veRL's own, without what it prints."""
    import verl.utils.config

    with contextlib.redirect_stdout(io.StringIO()):
        inspect.unwrap(verl.utils.config.validate_config)(config, use_reference_policy, use_critic)


@contextlib.contextmanager
def _in_words(findings: Findings, what: str):
    """Whatever veRL, Hydra or OmegaConf raise is a finding of one sentence."""
    try:
        yield
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        findings.settings.append(f"{what}: {in_words(error)}")


def in_words(error: Exception) -> str:
    """An exception as one line; of Hydra's about a class that it makes, what that class said."""
    while type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    plain = isinstance(error, ValueError | AssertionError) or type(error).__module__.startswith(("omegaconf", "hydra"))
    return text if plain and text else f"{type(error).__name__}: {text} (HYDRA_FULL_ERROR=1 shows where)"


def before_ray(config: DictConfig, use_reference_policy: bool, use_critic: bool, validate_config) -> None:
    """Stands in for veRL's `validate_config` in the driver."""
    if not is_gpg(config):
        cpu.adopt(config)
        return validate_config(config, use_reference_policy, use_critic)

    said = io.StringIO()  # by veRL, that all is well: for a run that starts

    def validate_quietly(*arguments):
        with contextlib.redirect_stdout(said):
            validate_config(*arguments)

    findings = look(config, typed_overrides(), validate_quietly, claim=True)
    stopping, told = parted(findings.all(), elsewhere(config))
    if stopping:
        raise SystemExit(stop_message(stopping))
    print(said.getvalue(), end="")
    report_end(is_gpg)
    warnings = [f"gpg_verl: {warning}" for warning in findings.warnings]
    print("\n".join([*first_lines(findings.settled), *warnings, *told]), flush=True)


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
    if (version := versions.forced_version()) is not None:
        lines.append(f"gpg_verl: veRL {version} is tried ({versions.TRY_VERL}), written for is {versions.VERL}")
    lines += [f"gpg_verl: {c.key}={c.after} ({c.why})" for c in settled.changes]
    lines += [f"gpg_verl: {notice}" for notice in settled.notices]
    return lines


def typed_overrides() -> list[str] | None:
    """What the user typed, where Hydra composed the config; None otherwise."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else None


def unusable_values(config: DictConfig) -> list[str]:
    """Values that nothing can be judged with: not resolvable, no number to count with, or no text to read."""
    try:
        OmegaConf.to_container(config, resolve=True)
    except Exception as error:  # of OmegaConf, or of a resolver of the user's
        return [f"a value cannot be resolved: {in_words(error)}"]
    if OmegaConf.select(config, "trainer.v1") is None:
        return [
            "the config has no trainer.v1, so it is one of an older veRL: use the installed veRL's ppo_trainer "
            "(hydra.searchpath and --config-path say where it comes from; model_engine=megatron is for Megatron)"
        ]
    problems = []
    for key, (least, may_be_null) in WHOLE_NUMBERS.items():
        value = OmegaConf.select(config, key, default=1)  # veRL has defaults of its own for some that are not there
        if value is None and may_be_null:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
            wanted = "a whole number" if least is None else f"a whole number from {least}"
            problems.append(f"{key}={value!r}: expected {wanted}{' or null' if may_be_null else ''}")
    for key, may_be_null in TEXTS.items():
        value = OmegaConf.select(config, key, default="")
        if not isinstance(value, str) and not (value is None and may_be_null):
            problems.append(f"{key}={value!r}: expected a text{' or null' if may_be_null else ''}")
    return problems


def missing_values(config: DictConfig) -> list[str]:
    """Settings that veRL needs and has no default for: it would stop deep inside Ray."""
    problems = []
    engine = OmegaConf.select(config, "actor_rollout_ref.actor.strategy")
    if engine in ENGINES and engine not in config.actor_rollout_ref.actor:
        problems.append(
            f"actor_rollout_ref.actor.strategy={engine} alone has none of that engine's settings: set "
            f"model_engine={engine} instead"
        )
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
