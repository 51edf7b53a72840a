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
        offsets: (rows + 1,) int64; row i has the tokens offsets[i]:offsets[i + 1].
    """
    if mask.numel() == 0 or mask.min() == 1:  # single-turn: the policy wrote all of it
        return offsets.diff()
    return torch.segment_reduce(mask.double(), "sum", offsets=offsets).long()


def row_rewards(rewards: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reduces token rewards to what a row needs.

    Args:
        rewards: (tokens,) float.
        offsets: as in `row_lengths`.

    Returns:
        scores (rows,) r_i = Σ_t r_i,t and magnitudes (rows,) Σ_t|r_i,t|, in the dtype of the rewards, summed in
        float64.
        to_go (tokens,) Σ_{s>=t} r_i,s.
    """
    lengths = offsets.diff()
    written = lengths > 0
    at_end = rewards.new_zeros(len(lengths))
    at_end[written] = rewards[offsets[1:][written] - 1]
    if at_end.count_nonzero() == rewards.count_nonzero():  # outcome rewards: one number, on the last token
        return at_end, at_end.abs(), repeat(at_end, lengths)
    values = rewards.double()
    scores, magnitudes = (torch.segment_reduce(x, "sum", offsets=offsets, initial=0.0) for x in (values, values.abs()))
    before = values.cumsum(0) - values  # Σ of everything before the token, over all rows
    row_end = repeat(torch.cat([values.new_zeros(1), values.cumsum(0)])[offsets[1:]], lengths)
    return scores.to(rewards.dtype), magnitudes.to(rewards.dtype), (row_end - before).to(rewards.dtype)


def repeat(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(tokens,): values[i] for each of the lengths[i] tokens of row i."""
    # numpy writes the runs directly; torch.repeat_interleave makes an index of all tokens first (13 times slower).
    return torch.from_numpy(np.repeat(values.numpy(), lengths.numpy()))
