"""Which rows of a step the actor computes: those with a gradient, and not one more than the hardware's grid asks for.

The gradient of a row in a zero-variance group is exactly zero (its advantage is), so leaving it out changes nothing but
the denominators, which `Update` keeps at those of the full mini-batch (design invariant 1). Plain Python.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

# How each of veRL's aggregation modes divides. A token mean divides by the tokens of the rows it is given; the others
# by a number of sequences that it is told, or by nothing.
TOKEN_MEAN = ("token-mean",)
SAME_DENOMINATOR = ("token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")

# veRL's engines that take their denominators from the rows of a call as FSDP's does.
STRATEGIES = ("fsdp", "fsdp2", "megatron")


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
    if get(f"{actor}.strategy") == "megatron":
        coefficient = f"{actor}.megatron.override_transformer_config.moe_aux_loss_coeff"
        if get(coefficient) != 0 and _has_experts(get("actor_rollout_ref.model.path")):
            return f"{coefficient}={get(coefficient)}: the router's loss gives every row a gradient (0 turns it off)"
    return None


def _has_experts(model: str | None) -> bool:
    """Whether the model is a mixture of experts, by the names that its config gives to their number; True if the config
    cannot be read.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model).to_dict()
    except Exception:
        return True
    return any((config.get(key) or 0) > 1 for key in ("num_experts", "num_local_experts", "n_routed_experts"))


def why_verl_updates(config: DictConfig) -> str | None:
    """Why veRL's own update is called on the whole batch, and not the updates planned here; None where these are."""

    def get(key: str):
        return OmegaConf.select(config, key)

    for key in ("distillation.enabled", "actor_rollout_ref.model.mtp.enable"):
        if get(key):
            return f"{key}=True"
    actor = "actor_rollout_ref.actor"
    if get(f"{actor}.strategy") not in STRATEGIES:
        return f"{actor}.strategy={get(f'{actor}.strategy')}: known for {', '.join(STRATEGIES)}"
    mode = get(f"{actor}.loss_agg_mode")
    if mode not in TOKEN_MEAN + SAME_DENOMINATOR:
        return f"{actor}.loss_agg_mode={mode}: unknown denominator"
    if mode == "seq-mean-token-sum-norm" and get(f"{actor}.loss_scale_factor") is None:
        return f"{actor}.loss_agg_mode={mode} without loss_scale_factor divides by the padded width of the batch"
    return None


def why_rows_stay(config: DictConfig) -> str | None:
    """Why rows without gradient go through the actor all the same; None where they are left out."""
    return other_loss_term(config) or why_verl_updates(config)


def updates_per_batch(config: DictConfig) -> int:
    """K: into how many mini-batches a sampled batch is cut (paper: 1), `ppo_epochs` apart."""
    actor, v1 = config.actor_rollout_ref.actor, config.trainer.v1
    local_batches = OmegaConf.select(v1, f"{v1.trainer_mode.removeprefix('gpg_')}.parameter_sync_step") or 1
    return max(1, config.data.train_batch_size // local_batches // actor.ppo_mini_batch_size)


@dataclass(frozen=True)
class Update:
    """One optimizer step on the rows of its mini-batch that have a gradient.

    rows: for each data-parallel rank the same number of indices into the batch.
    micro_batch_size: rows per rank and forward pass, at most the configured one; None with dynamic batch sizes.
    factor: what the advantages are multiplied with, so that a token mean divides by all tokens of the mini-batch.
    sequences: rows of the full mini-batch, which sequence means divide by.
    """

    rows: list[list[int]]
    micro_batch_size: int | None
    factor: float
    sequences: int


def assign(uids: Sequence[str], updates: int) -> list[list[int]]:
    """Cuts a batch into `updates` mini-batches of whole groups, as even in groups as can be.

    Args:
        uids: (rows,) the prompt's uid, which veRL draws at random: in its order, no mini-batch is one of early
            finishers, and how many rows a group has plays no part.

    Returns for each mini-batch its rows in batch order.
    """
    place = {uid: j for j, uid in enumerate(sorted(set(uids)))}
    mini_batches: list[list[int]] = [[] for _ in range(updates)]
    for row, uid in enumerate(uids):
        mini_batches[place[uid] * updates // len(place)].append(row)
    return mini_batches


def plan_updates(
    mini_batches: Sequence[Sequence[int]],
    spare: Sequence[int],
    has_gradient: Sequence[bool],
    tokens: Sequence[int],
    *,
    ranks: int,
    micro_batch_size: int | None,
    loss_agg_mode: str,
    work: Sequence[float],
) -> tuple[list[Update], int]:
    """The optimizer steps of a batch, one for each mini-batch in which a row has a gradient.

    Args:
        mini_batches: the rows of each full mini-batch.
        spare: rows of no mini-batch (padding), for filling the grid.
        has_gradient, tokens: (rows of the batch,) whether the row has one; its response tokens, which a token mean
            counts, 0 for padding.
        ranks: data-parallel size; each rank gets the same number of rows.
        micro_batch_size: rows per rank and forward pass; None where veRL packs by tokens.
        loss_agg_mode: veRL's aggregation mode.
        work: (rows of the batch,) what each row costs, by which the ranks are balanced.

    Returns the updates and how many more spare rows it takes; the updates are complete where that is 0.
    """
    plans = []
    for mini_batch in mini_batches:
        rows = [i for i in mini_batch if has_gradient[i]]
        if not rows:
            continue
        per_rank, micro = math.ceil(len(rows) / ranks), None
        if micro_batch_size is not None:
            passes = math.ceil(per_rank / micro_batch_size)
            micro = math.ceil(per_rank / passes)
            per_rank = passes * micro
        plans.append((mini_batch, rows, micro, per_rank * ranks - len(rows)))

    # The grid is filled with rows without gradient, shortest first: those of the mini-batch, then any.
    idle = sorted((i for rows in mini_batches for i in rows if not has_gradient[i]), key=lambda i: tokens[i])
    free = dict.fromkeys([*idle, *spare])
    updates, missing = [], 0
    for mini_batch, rows, micro, gap in plans:
        inside = set(mini_batch)
        own = (i for i in free if i in inside)
        others = (i for i in free if i not in inside)
        filling = list(itertools.islice(itertools.chain(own, others), gap))
        missing += gap - len(filling)
        for i in filling:
            del free[i]
        rows = rows + filling
        factor = 1.0
        if loss_agg_mode in TOKEN_MEAN:
            factor = sum(tokens[i] for i in rows) / sum(tokens[i] for i in mini_batch)
        parts = share_out(rows, work, ranks) if len(filling) == gap else []
        updates.append(Update(parts, micro, factor, len(mini_batch)))
    return updates, missing


def share_out(rows: Sequence[int], work: Sequence[float], ranks: int) -> list[list[int]]:
    """Divides rows evenly in number among ranks so that each has about equally much to do: the longest first, each to
    the rank with the least so far (Graham's LPT rule). At 65,536 rows this takes 0.1 s; veRL's Karmarkar-Karp takes 8.

    Args:
        rows: indices into the batch, a multiple of `ranks`.
        work: (rows of the batch,) of each.

    Returns the rows of each rank, those with the least work first: a micro-batch of rows of one length has the least
    padding.
    """
    room = len(rows) // ranks
    parts: list[list[int]] = [[] for _ in range(ranks)]
    least = [(0.0, rank) for rank in range(ranks)]
    for i in sorted(rows, key=lambda i: work[i], reverse=True):
        load, rank = heapq.heappop(least)
        parts[rank].append(i)
        if len(parts[rank]) < room:
            heapq.heappush(least, (load + work[i], rank))
    return [part[::-1] for part in parts]
