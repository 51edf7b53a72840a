"""A batch as veRL stores it: the response tokens of all rows in one flat tensor, and where each row begins.

What GPG needs of a row is one reward and one length, and what it gives back is one advantage; nothing here is padded.
Pure torch on plain tensors.
"""

from __future__ import annotations

import numpy as np
import torch


def row_lengths(mask: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Response tokens per row, (rows,) int64.

    Args:
        mask: (tokens,) int; 1 on the tokens the policy wrote, 0 on those of a tool or of the environment.
        offsets: (rows + 1,) int64, here as everywhere: row i has the tokens offsets[i]:offsets[i + 1].
    """
    if mask.numel() == 0 or mask.min() == 1:  # single-turn: the policy wrote all of it
        return offsets.diff()
    return torch.segment_reduce(mask.double(), "sum", offsets=offsets).long()


def row_rewards(rewards: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums token rewards (tokens,) over rows: the only place that does.

    Returns scores r_i = Σ_t r_i,t and magnitudes Σ_t|r_i,t|, (rows,) each in the dtype of the rewards. Sums are taken
    in float64: equal rewards stay equal in any order of addition.
    """
    at_end = _last_rewards(rewards, offsets)
    if at_end is not None:
        return at_end, at_end.abs()
    values = rewards.double()
    scores, magnitudes = (torch.segment_reduce(x, "sum", offsets=offsets, initial=0.0) for x in (values, values.abs()))
    return scores.to(rewards.dtype), magnitudes.to(rewards.dtype)


def rewards_to_go(rewards: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Σ_{s>=t} r_i,s for every token, (tokens,) as `rewards`."""
    at_end = _last_rewards(rewards, offsets)
    if at_end is not None:
        return repeat(at_end, offsets.diff())
    values = rewards.double()
    before = values.cumsum(0) - values  # Σ of everything before the token, over all rows
    row_end = repeat(torch.cat([values.new_zeros(1), values.cumsum(0)])[offsets[1:]], offsets.diff())
    return (row_end - before).to(rewards.dtype)


def _last_rewards(rewards: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor | None:
    """(rows,) the reward on each row's last token where no other token has one (outcome rewards), else None."""
    written = offsets.diff() > 0
    at_end = rewards.new_zeros(len(written))
    at_end[written] = rewards[offsets[1:][written] - 1]
    return at_end if at_end.count_nonzero() == rewards.count_nonzero() else None


def repeat(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(tokens,): values[i] for each of the lengths[i] tokens of row i."""
    # numpy writes the runs directly; torch.repeat_interleave makes an index of all tokens first (13 times slower).
    return torch.from_numpy(np.repeat(values.numpy(), lengths.numpy()))
