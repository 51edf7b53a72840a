"""The maths as veRL calls it: what is registered as `gpg` in veRL's estimator and policy-loss registries.

veRL's signatures carry neither a batch's sessions to the estimator nor what the loss sees back to the worker; those go
by the module variables here, each set and read in one process by one caller.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo import core_algos

from gpg_verl.algorithm.advantage import GroupStatistics, Sessions, gpg_advantage
from gpg_verl.algorithm.loss import gpg_token_loss
from gpg_verl.compat.versions import VERL
from gpg_verl.settings import GPGSettings
from gpg_verl.training.agreement import Agreement


@dataclass(frozen=True)
class Rows:
    """What the trainer knows of a batch's rows and veRL does not pass on.

    lengths: (rows,) response tokens, those that rejection sampling takes out included.
    sessions: which rows are outputs of one response; None where each is its own.
    left_out: (rows,) bool, rows that are not trained on; None where all are.
    """

    lengths: torch.Tensor
    sessions: Sessions | None
    left_out: torch.Tensor | None


# Set by GPG's trainer step around veRL's call of the estimator.
rows: Rows | None = None
last_statistics: GroupStatistics | None = None


def gpg_advantage_estimator(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Mapping | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Â_i = α · (r_i − mean{r_1..r_G}) / F_norm (paper, section 3) in veRL's estimator interface.

    Args:
        token_level_rewards: (rows, T) float rewards per response token.
        response_mask: (rows, T) 1 where the token is the policy's.
        index: (rows,) the prompt's uid, one value per group.
        config: the node `algorithm`; its `gpg` holds the settings (see `GPGSettings`).

    Returns:
        advantages (rows, T) and undiscounted rewards-to-go (rows, T).
    """
    global last_statistics
    settings = GPGSettings.from_node(config.get("gpg") if config is not None else None)
    advantages, returns, last_statistics = gpg_advantage(
        token_level_rewards,
        response_mask,
        index,
        f_norm=settings.f_norm,
        alpha=settings.alpha,
        sessions=rows.sessions if rows else None,
        lengths=rows.lengths if rows else None,
        left_out=rows.left_out if rows else None,
    )
    return advantages, returns


# Set by GPG's actor worker around an update: see `during_update`.
_agreement: Agreement | None = None
_correction: dict[str, Any] | None = None


@contextlib.contextmanager
def during_update(agreement: Agreement | None, correction: dict[str, Any] | None):
    """While it lasts, the policy loss takes `old_log_prob` for the rollout's: it adds what it sees to `agreement`, and
    weights and rejects tokens by veRL's rollout correction with these arguments, from its own detached log-probs.
    """
    global _agreement, _correction
    _agreement, _correction = agreement, correction
    try:
        yield
    finally:
        _agreement = _correction = None


def gpg_policy_loss(
    old_log_prob: torch.Tensor | None,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """−log π_θ(o_i,t) · Â_i aggregated by veRL's `loss_agg_mode`; old log-probs play no part in it.

    All tensors are (rows, T). `config` is veRL's ActorConfig, whose `global_batch_info` holds the denominators of the
    whole mini-batch over all ranks.
    """
    metrics, sampled = None, response_mask
    if _correction is not None and response_mask.any():
        from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask

        weights, response_mask, metrics = compute_rollout_correction_and_rejection_mask(
            log_prob.detach(), old_log_prob, response_mask, **_correction
        )
        rollout_is_weights = weights.batch["rollout_is_weights"] if weights is not None else None
    if _agreement is not None:
        _agreement.add(log_prob, old_log_prob, sampled, metrics)
    token_loss = gpg_token_loss(log_prob, advantages, rollout_is_weights)
    loss = core_algos.agg_loss(
        loss_mat=token_loss,
        loss_mask=response_mask,
        loss_agg_mode=loss_agg_mode,
        **(config.global_batch_info if config is not None else {}),
    )
    return loss, {}


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
