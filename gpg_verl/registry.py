"""The maths as veRL calls it: what stands under `gpg` in veRL's estimator and policy-loss registries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo import core_algos

from gpg_verl.advantage import GroupStatistics, gpg_advantage
from gpg_verl.config import GPGSettings
from gpg_verl.loss import gpg_token_loss


@dataclass(frozen=True)
class Estimate:
    """What the estimator found beyond its return values; tokens: (rows,) response tokens per row."""

    statistics: GroupStatistics
    tokens: torch.Tensor


# veRL's estimators return advantages and returns and nothing else; GPG's trainer step reads the rest here.
last_estimate: Estimate | None = None


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
    global last_estimate
    settings = GPGSettings.from_node(config.get("gpg") if config is not None else None)
    advantages, returns, statistics = gpg_advantage(
        token_level_rewards, response_mask, index, f_norm=settings.f_norm, alpha=settings.alpha
    )
    last_estimate = Estimate(statistics, response_mask.sum(-1))
    return advantages, returns


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
    token_loss = gpg_token_loss(log_prob, advantages, rollout_is_weights)
    loss = core_algos.agg_loss(
        loss_mat=token_loss,
        loss_mask=response_mask,
        loss_agg_mode=loss_agg_mode,
        **(config.global_batch_info if config is not None else {}),
    )
    return loss, {"old_probs_diff_mean": _mean_probs_diff(log_prob, old_log_prob, response_mask)}


@torch.no_grad()
def _mean_probs_diff(log_prob, old_log_prob, response_mask) -> float:
    """Mean |π_θ − π_old| over the response tokens, in probability: from the update's own forward, at no extra pass.

    Where the old log-probs are the rollout's (veRL's bypass mode, GPG's default) this is how well trainer and rollout
    agree; the trainer step reports it under veRL's name for that.
    """
    if old_log_prob is None:
        return 0.0
    mask = response_mask.bool()
    tokens = mask.sum().clamp(min=1)
    return (((log_prob.exp() - old_log_prob.exp()).abs() * mask).sum() / tokens).item()


def _register() -> None:
    """`register_adv_est` refuses a name that is taken, and veRL takes `gpg`: the registry entries are replaced."""
    for registry, ours in (
        (core_algos.ADV_ESTIMATOR_REGISTRY, gpg_advantage_estimator),
        (core_algos.POLICY_LOSS_REGISTRY, gpg_policy_loss),
    ):
        if "gpg" not in registry:
            raise RuntimeError("veRL's registries have no `gpg` any more: gpg_verl was written for veRL 0.9.1")
        registry["gpg"] = ours


_register()
