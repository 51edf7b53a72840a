"""`python -m gpg_verl check`: a run's config, composed and judged without starting Ray."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from gpg_verl.launch.settle import Settled
from gpg_verl.settings import is_gpg

# What decides how a GPG run trains, beyond what GPG itself implies.
SHOWN = (
    "algorithm.adv_estimator",
    "data.train_batch_size",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.name",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.loss_agg_mode",
    "actor_rollout_ref.actor.entropy_coeff",
    "actor_rollout_ref.actor.optim.lr",
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
)


def compose(overrides: list[str], config_path: str | None = None, config_name: str = "ppo_trainer") -> DictConfig:
    """veRL's config as `verl.trainer.main_ppo` would see it; raises Hydra's own errors for keys that do not exist.

    A relative `config_path` begins at main_ppo's own folder, as for its `--config-path`.
    """
    import hydra
    import verl

    path = config_path or "config"
    if path.startswith("pkg://"):
        context = hydra.initialize_config_module(path.removeprefix("pkg://"), version_base=None)
    else:
        folder = (Path(verl.__file__).parent / "trainer" / path).resolve()
        context = hydra.initialize_config_dir(str(folder), version_base=None)
    with context:
        composed = hydra.compose(config_name, overrides=overrides, return_hydra_config=True)
    for key, value in composed.hydra.job.env_set.items():
        os.environ[key] = str(value)
    config = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    OmegaConf.set_struct(config, True)
    return config


def main(overrides: list[str], config_path: str | None = None, config_name: str = "ppo_trainer") -> int:
    import verl  # noqa: F401  loads the plugin, which makes the presets known

    from gpg_verl.launch import preflight

    try:
        config = compose(overrides, config_path, config_name)
        ours, estimator = is_gpg(config), OmegaConf.select(config, "algorithm.adv_estimator")
    except Exception as error:  # of Hydra, OmegaConf, or what reads a config file
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        detail = f" ({preflight.in_words(error.__cause__)})" if error.__cause__ else ""
        return print_finding("error", f"the config does not compose: {preflight.in_words(error)}{detail}")
    if not ours:
        return print_finding(
            "error", f"algorithm.adv_estimator={estimator}: this is not a GPG run; set algorithm.adv_estimator=gpg"
        )
    findings = preflight.look(config, overrides)
    errors, warnings = findings.split_by_severity()
    notes = []
    if findings.settled is not None:
        print("\n".join(trained_with(config, findings.settled)))
        notes = findings.settled.notices
    hints = [findings.hint] if findings.hint else []
    for kind, texts in (("note", notes), ("warning", warnings), ("error", errors), ("note", hints)):
        for text in texts:
            print_finding(kind, text)
    print(f"{len(errors)} errors, {len(warnings)} warnings")
    return 1 if errors else 0


def print_finding(kind: str, text: str) -> int:
    """Prints a finding on a line of its own; its kind is coloured on a terminal."""
    colour = {"note": "blue", "warning": "yellow", "error": "red"}[kind]
    Console(soft_wrap=True).print(f"[{colour}]{kind:8}[/]{escape(text)}", highlight=False)
    return 1


def trained_with(config: DictConfig, settled: Settled) -> list[str]:
    """What decides how the run trains, as overrides that can be copied, and where GPG's values come from."""

    def typed(value) -> str:
        """As Hydra reads it."""
        return "null" if value is None else str(value)

    shown = {key: OmegaConf.select(config, key, throw_on_missing=False) for key in SHOWN}
    shown |= {f"+algorithm.gpg.{name}": value for name, value in vars(settled.settings).items()}
    lines = [f"  {key}={typed(value)}" for key, value in shown.items()]
    lines += [f"  {c.key}={typed(c.after)}  # GPG, was {typed(c.before)}: {c.why}" for c in settled.changes]
    return ["what this run trains with:", *lines]
