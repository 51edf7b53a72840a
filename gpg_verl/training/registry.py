"""The maths as veRL calls it: what is registered as `gpg` in veRL's estimator and policy-loss registries.

veRL's signatures carry neither a batch's sessions to the estimator nor its statistics back, nor arguments to the loss.
Where a step has some, `registered` puts the function bound to them into veRL's registry for one call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo import core_algos

from gpg_verl.algorithm.advantage import GroupStatistics, gpg_advantage
from gpg_verl.algorithm.loss import gpg_token_loss
from gpg_verl.compat.versions import VERL
from gpg_verl.settings import GPGSettings


def gpg_advantage_estimator(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Mapping | None = None,
    *,
    known: Mapping[str, Any] | None = None,
    report: Callable[[GroupStatistics], None] = lambda statistics: None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Â_i = α · (r_i − mean{r_1..r_G}) / F_norm (paper, section 3) in veRL's estimator interface.

    Args:
        token_level_rewards: (rows, T) float rewards per response token.
        response_mask: (rows, T) 1 where the token is the policy's.
        index: (rows,) the prompt's uid, one value per group.
        config: the node `algorithm`; its `gpg` holds the settings (see `GPGSettings`).
        known: what GPG's trainer knows of the rows: `lengths`, `sessions`, `left_out` (see `gpg_advantage`).
        report: is given the statistics.

    Returns:
        advantages (rows, T) and undiscounted rewards-to-go (rows, T).
    """
    settings = GPGSettings.from_node(config.get("gpg") if config is not None else None)
    advantages, returns, statistics = gpg_advantage(
        token_level_rewards, response_mask, index, f_norm=settings.f_norm, alpha=settings.alpha, **(known or {})
    )
    report(statistics)
    return advantages, returns


def gpg_policy_loss(
    old_log_prob: torch.Tensor | None,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
    *,
    correction: Mapping[str, Any] | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """−log π_θ(o_i,t) · Â_i aggregated by veRL's `loss_agg_mode`; old log-probs play no part in it.

    All tensors are (rows, T). `config` is veRL's ActorConfig, whose `global_batch_info` holds the denominators of the
    whole mini-batch over all ranks. With `correction`, the arguments of veRL's rollout correction, `old_log_prob` is
    the rollout's, and tokens are weighted and rejected by the actor's own detached log-probs.
    """
    if correction is not None and response_mask.any():
        from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask

        weights, response_mask, _ = compute_rollout_correction_and_rejection_mask(
            log_prob.detach(), old_log_prob, response_mask, **correction
        )
        rollout_is_weights = weights.batch["rollout_is_weights"] if weights is not None else None
    token_loss = gpg_token_loss(log_prob, advantages, rollout_is_weights)
    whole = config.global_batch_info if config is not None else {}
    loss = core_algos.agg_loss(loss_mat=token_loss, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **whole)
    return loss, {}


@contextlib.contextmanager
def registered(registry: dict[str, Callable], function: Callable) -> Iterator[None]:
    """While it lasts, `gpg` in veRL's registry is this function."""
    usual, registry["gpg"] = registry["gpg"], function
    try:
        yield
    finally:
        registry["gpg"] = usual


def _register() -> None:
    """`register_adv_est` refuses a name that is taken, and veRL takes `gpg`: the registry entries are replaced."""
    for registry, ours in (
        (core_algos.ADV_ESTIMATOR_REGISTRY, gpg_advantage_estimator),
        (core_algos.POLICY_LOSS_REGISTRY, gpg_policy_loss),
    ):
        if "gpg" not in registry:
            raise RuntimeError(f"veRL's registries have no `gpg` any more: gpg_verl was written for veRL{VERL}")
        registry["gpg"] = ours


_register()
