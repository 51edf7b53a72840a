"""`python -m gpg_verl check`: a run's config, composed and judged without starting Ray."""

from __future__ import annotations

import os

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

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
    """veRL's config as `verl.trainer.main_ppo` would see it; raises Hydra's own errors for keys that do not exist."""
    import hydra

    if config_path is None:
        context = hydra.initialize_config_module("verl.trainer.config", version_base=None)
    else:
        context = hydra.initialize_config_dir(os.path.abspath(config_path), version_base=None)
    with context:
        composed = hydra.compose(config_name, overrides=overrides, return_hydra_config=True)
    for key, value in composed.hydra.job.env_set.items():
        os.environ[key] = str(value)
    config = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
    OmegaConf.set_struct(config, True)
    return config


def main(overrides: list[str], config_path: str | None = None, config_name: str = "ppo_trainer") -> int:
    import verl  # noqa: F401  loads the plugin, which makes the presets known
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from gpg_verl import cpu
    from gpg_verl.launch import preflight

    console = Console(soft_wrap=True)
    try:
        config = compose(overrides, config_path, config_name)
    except (HydraException, OmegaConfBaseException) as error:
        detail = f" ({error.__cause__})" if error.__cause__ else ""
        console.print(f"[red]error[/red] the config does not compose: {escape(str(error) + detail)}", highlight=False)
        return 1
    if not is_gpg(config):
        console.print(
            f"[red]error[/red] algorithm.adv_estimator={config.algorithm.adv_estimator}: this is not a GPG run; set "
            "algorithm.adv_estimator=gpg",
            highlight=False,
        )
        return 1
    cpu.adopt(config)
    findings = preflight.inspect(config, overrides)
    errors, warnings = findings.settings, [*findings.files, *findings.machine]
    if not errors:
        errors += veto_of_verl(config)

    console.print(settings_table(config, findings.settled))
    for notice in findings.settled.notices:
        console.print(f"[blue]note[/blue]    {escape(notice)}", highlight=False)
    for warning in warnings:
        console.print(f"[yellow]warning[/yellow] {escape(warning)}", highlight=False)
    for error in errors:
        console.print(f"[red]error[/red]   {escape(error)}", highlight=False)
    console.print(f"{len(errors)} errors, {len(warnings)} warnings", highlight=False)
    return 1 if errors else 0


def veto_of_verl(config: DictConfig) -> list[str]:
    """What veRL's own validation says to the settled config."""
    import contextlib
    import inspect
    import io

    import verl.utils.config
    from verl.trainer.ppo.utils import need_critic, need_reference_policy

    validate = inspect.unwrap(verl.utils.config.validate_config)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            validate(config, need_reference_policy(config), need_critic(config))
    except (AssertionError, ValueError, TypeError) as error:
        return [f"veRL refuses the configuration: {escape(error)}"]
    return []


def settings_table(config: DictConfig, settled) -> Table:
    table = Table(title="what this run trains with", title_justify="left")
    table.add_column("key", overflow="fold")
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")
    for key in SHOWN:
        missing = OmegaConf.is_missing(config.actor_rollout_ref.rollout, "name") and key.endswith("rollout.name")
        table.add_row(key, "not set" if missing else str(OmegaConf.select(config, key)), "")
    for name, value in vars(settled.settings).items():
        table.add_row(f"algorithm.gpg.{name}", str(value), "")
    for change in settled.changes:
        table.add_row(change.key, str(change.after), f"GPG, was {change.before}: {change.why}")
    return table
