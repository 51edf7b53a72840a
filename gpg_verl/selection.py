"""Which rows of a step the actor computes: those with a gradient, and not one more than the hardware's grid asks for.

The gradient of a row in a zero-variance group is exactly zero (its advantage is), so leaving it out changes nothing but
the denominator of a token mean, which `Selection.factor` puts right (design invariant 1). Plain Python.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

# How each of veRL's aggregation modes divides. A token mean divides by the tokens of the rows it is given; the others
# by the configured number of sequences, or by nothing.
TOKEN_MEAN = ("token-mean",)
SAME_DENOMINATOR = ("token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")


def other_loss_term(config: DictConfig) -> str | None:
    """What else than GPG's loss gives a row a gradient, so that none may be left out; None where nothing does."""

    def get(key: str):
        return OmegaConf.select(config, key)

    actor = "actor_rollout_ref.actor"
    if get(f"{actor}.entropy_coeff"):
        return f"{actor}.entropy_coeff={get(f'{actor}.entropy_coeff')}: the entropy bonus gives every row a gradient"
    for key in (
        f"{actor}.use_kl_loss",
        "algorithm.use_kl_in_reward",
        "distillation.enabled",
        "actor_rollout_ref.model.mtp.enable",
    ):
        if get(key):
            return f"{key}=True gives every row a gradient"
    return None


def why_rows_stay(config: DictConfig) -> str | None:
    """Why rows without gradient go through the actor all the same; None where they are left out."""

    def get(key: str):
        return OmegaConf.select(config, key)

    if (term := other_loss_term(config)) is not None:
        return term
    actor = "actor_rollout_ref.actor"
    if get(f"{actor}.strategy") not in ("fsdp", "fsdp2"):
        return f"{actor}.strategy={get(f'{actor}.strategy')}: tried with fsdp and fsdp2 only"
    if get("algorithm.rollout_correction.rollout_rs") is not None:
        return "rejection sampling takes tokens out of the loss but not out of its denominator"
    mode = get(f"{actor}.loss_agg_mode")
    if mode not in TOKEN_MEAN + SAME_DENOMINATOR:
        return f"{actor}.loss_agg_mode={mode}: unknown denominator"
    if mode == "seq-mean-token-sum-norm" and get(f"{actor}.loss_scale_factor") is None:
        return f"{actor}.loss_agg_mode={mode} without loss_scale_factor divides by the padded width of the batch"
    if several_updates(config):
        return "several updates per rollout batch"
    return None


def several_updates(config: DictConfig) -> bool:
    """Whether a rollout batch is trained on in more than one update before the next weight sync or local batch."""
    actor, v1 = config.actor_rollout_ref.actor, config.trainer.v1
    local_batches = OmegaConf.select(v1, f"{v1.trainer_mode.removeprefix('gpg_')}.parameter_sync_step") or 1
    return config.data.train_batch_size != actor.ppo_mini_batch_size * local_batches or actor.ppo_epochs != 1


@dataclass(frozen=True)
class Selection:
    """rows: indices into the batch. micro_batch_size: for this call, at most the configured one; None with dynamic
    batch sizes. factor: what the advantages are multiplied with, so that a token mean divides by all tokens."""

    rows: list[int]
    micro_batch_size: int | None
    factor: float


def select_rows(
    valid: Sequence[bool],
    tokens: Sequence[int],
    *,
    ranks: int,
    micro_batch_size: int | None,
    loss_agg_mode: str,
) -> Selection:
    """The rows with a gradient, filled up to the grid with the cheapest rows that have none.

    Args:
        valid: (rows,) whether the row has a gradient.
        tokens: (rows,) its response tokens, which a token mean counts; 0 for padding.
        ranks: data-parallel size; each rank gets the same number of rows.
        micro_batch_size: rows per rank and forward pass; None where veRL packs by tokens.
        loss_agg_mode: veRL's aggregation mode.

    Returns:
        rows in batch order; their number divides by ranks × the selection's micro-batch size.
    """
    rows = [i for i, has_gradient in enumerate(valid) if has_gradient]
    if not rows:
        return Selection([], micro_batch_size, 0.0)
    per_rank = math.ceil(len(rows) / ranks)
    micro = None
    if micro_batch_size is not None:
        passes = math.ceil(per_rank / micro_batch_size)
        micro = math.ceil(per_rank / passes)
        per_rank = passes * micro
    # Rows of the batch that have no gradient fill the grid: there is no need for synthetic ones. Shortest first.
    idle = sorted(
        (i for i, has_gradient in enumerate(valid) if not has_gradient), key=lambda i: (tokens[i] == 0, tokens[i])
    )
    rows = sorted(rows + idle[: per_rank * ranks - len(rows)])
    factor = sum(tokens[i] for i in rows) / sum(tokens) if loss_agg_mode in TOKEN_MEAN else 1.0
    return Selection(rows, micro, factor)
