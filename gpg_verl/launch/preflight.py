"""The look at a run before Ray starts: read the facts, settle what GPG implies, ask the checks, claim the folder,
veRL's own validation. What it finds is one message, no traceback.

`before_ray` is for `verl.trainer.main_ppo` (see hooks.py); `look` is the same for `python -m gpg_verl check`.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

import gpg_verl
from gpg_verl import cpu
from gpg_verl.compat import versions
from gpg_verl.guards import run_folder
from gpg_verl.guards.exit import report_end
from gpg_verl.launch.checks import CHECKS
from gpg_verl.launch.facts import WORK_ELSEWHERE, Advice, Facts
from gpg_verl.launch.settle import Settled, settle
from gpg_verl.settings import is_gpg

# What is counted with, or looked up, before veRL's validation: its type, the least number, whether it may be left out.
TYPES = {
    "data.train_batch_size": (int, 1, False),
    "data.gen_batch_size": (int, 1, True),
    "data.train_max_samples": (int, -1, False),
    "actor_rollout_ref.actor.ppo_mini_batch_size": (int, 1, False),
    "actor_rollout_ref.actor.ppo_epochs": (int, 1, False),
    "actor_rollout_ref.rollout.prompt_length": (int, 1, False),
    "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes": (int, 0, False),
    "ray_kwargs.ray_init.num_cpus": (int, 0, True),
    "transfer_queue.backend.SimpleStorage.num_data_storage_units": (int, 1, False),
    "trainer.nnodes": (int, 1, False),
    "trainer.n_gpus_per_node": (int, 1, False),
    "trainer.total_epochs": (int, 1, False),
    "trainer.total_training_steps": (int, 1, True),
    "trainer.save_freq": (int, None, False),
    "trainer.critic_warmup": (int, 0, False),
    "trainer.default_local_dir": (str, None, False),
    "actor_rollout_ref.model.path": (str, None, True),
}


@dataclass
class Findings:
    """What stands against a run.

    settled: what GPG implies; None where the config could not be read.
    contradictions: wrong wherever it runs.
    lacking: what this machine lacks.
    warnings: stop nothing.
    remote_cluster: why the work is done on other machines; None where it is done on this one.
    verl_said: what veRL's validation printed.
    """

    settled: Settled | None = None
    contradictions: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    remote_cluster: str | None = None
    verl_said: str = ""

    def add(self, messages: Iterable[str]) -> None:
        """Takes messages of checks, each by its class."""
        for message in messages:
            lists = {versions.LocalProblem: self.lacking, Advice: self.warnings}
            lists.get(type(message), self.contradictions).append(message)

    def split_by_severity(self) -> tuple[list[str], list[str]]:
        """(what stops the run, lines about what does not)."""
        if self.remote_cluster is None:
            return [*self.contradictions, *self.lacking], self.warnings
        told = [f"not on this machine, and {self.remote_cluster}, so its nodes need it: {x}" for x in self.lacking]
        return self.contradictions, [*self.warnings, *told]

    @property
    def hint(self) -> str | None:
        """A way out where only this machine lacks something."""
        if self.remote_cluster is not None or not self.lacking:
            return None
        return f"{WORK_ELSEWHERE}=1 where other machines do the work: what only this one lacks is then told"

    @contextlib.contextmanager
    def in_words(self, what: str):
        """Whatever veRL, Hydra or OmegaConf raise is a contradiction of one sentence."""
        try:
            yield
        except Exception as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            self.contradictions.append(f"{what}: {in_words(error)}")


def in_words(error: Exception) -> str:
    """An exception as one line; of Hydra's about a class that it makes, what that class said."""
    while type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    plain = isinstance(error, ValueError | AssertionError) or type(error).__module__.startswith(("omegaconf", "hydra"))
    return text if plain and text else f"{type(error).__name__}: {text} (HYDRA_FULL_ERROR=1 shows where)"


def look(config: DictConfig, overrides: list[str] | None, claim: bool = False) -> Findings:
    """Settles what GPG implies in `config` and judges the whole. Never raises for something the user can fix.

    Args:
        config: veRL's composed config.
        overrides: what the user typed, where that is known.
        claim: takes the run's folder for this process.
    """
    findings = Findings()
    with findings.in_words("the configuration cannot be used"):
        cpu.adopt(config)
        unsupported = versions.unsupported()
        findings.add([unsupported] if unsupported else unusable_values(config))
        if findings.contradictions:
            return findings
        facts = Facts(config)
        findings.remote_cluster = facts.remote_cluster
        findings.settled = settle(config, overrides, images=facts.has_images and not facts.dummy_loading_is_safe)
        findings.add(findings.settled.contradictions)
        for check in CHECKS:
            with findings.in_words("the configuration cannot be used"):
                findings.add(check(facts))
        if claim and not findings.contradictions:
            findings.add(run_folder.claim(config))
    if not findings.contradictions:
        with findings.in_words("veRL refuses the configuration"):
            findings.verl_said = validate(config)
    return findings


def validate(config: DictConfig) -> str:
    """veRL's validation of the settled config, and of the rollout's part, which it leaves to processes behind Ray.

    Returns what it prints.
    """
    import verl.utils.config
    from verl.trainer.ppo.utils import need_critic, need_reference_policy

    verls = inspect.unwrap(verl.utils.config.validate_config)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        verls(config, need_reference_policy(config), need_critic(config))
    verl.utils.config.omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    return said.getvalue()


def before_ray(config: DictConfig) -> None:
    """Stands in for veRL's `validate_config` in the driver of a GPG run."""
    findings = look(config, typed_overrides(), claim=True)
    stopping, told = findings.split_by_severity()
    if stopping:
        lines = [f"  - {problem}" for problem in stopping] + [f"  ({hint})" for hint in [findings.hint] if hint]
        raise SystemExit("\n".join(["\ngpg_verl: this run cannot start.", *lines, ""]))
    print(findings.verl_said, end="")
    report_end(is_gpg)
    print("\n".join([*first_lines(findings.settled), *(f"gpg_verl: {line}" for line in told)]), flush=True)


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
    return [*lines, *(f"gpg_verl: {notice}" for notice in settled.notices)]


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
    for key, (kind, least, may_be_null) in TYPES.items():
        value = OmegaConf.select(config, key, default=kind(1))  # veRL has defaults of its own for some
        sound = isinstance(value, kind) and not isinstance(value, bool) and (least is None or value >= least)
        if not sound and not (value is None and may_be_null):
            wanted = "a text" if kind is str else "a whole number" + (f" from {least}" if least is not None else "")
            problems.append(f"{key}={value!r}: expected {wanted}{' or null' if may_be_null else ''}")
    return problems
