"""GPG's advantages and group statistics: pure torch on plain tensors (arXiv 2504.02546).

A prompt has a group of G responses o_1..o_G with rewards r_1..r_G, where r_i = Σ_t r_i,t:

    Â_i = α · (r_i − mean{r_1..r_G}) / F_norm      F_norm = 1, or std{r_1..r_G}
    α   = B / (B − M)                              the "accurate gradient estimation"

B counts the samples of the batch and M those whose whole group has one and the same reward: their
gradient is exactly zero, and α restores the scale that averaging over them takes away.

`group_statistics` works on one number per response, `gpg_advantage` on the dense tensors veRL passes. Where one
response (a *session* of several turns) is stored as several rows, `session_statistics` makes them one sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from gpg_verl.algorithm import ALPHAS, F_NORMS
from gpg_verl.algorithm.ragged import row_rewards

# Two rewards of a group are equal if they differ by at most this many eps · max_i Σ_t|r_i,t|. Storing the
# token rewards and rounding their sum moves each reward by up to one eps, so a difference by two; the other
# two are for the arithmetic of the reward function.
EQUAL_WITHIN_EPS = 4


@dataclass(frozen=True)
class GroupStatistics:
    """What a GPG step knows about its groups; the symbols are the paper's.

    A *sample* is a row with at least one response token; all other rows are padding and count nowhere.
    A group is *valid* if its samples have at least two different rewards.
    """

    advantages: torch.Tensor  # (rows,) Â_i, 0 outside valid groups
    valid: torch.Tensor  # (rows,) bool: a sample of a valid group, the only rows with a gradient
    counted: torch.Tensor  # (rows,) bool: a sample
    B: int  # samples
    M: int  # samples of groups with one and the same reward, groups of one included
    alpha: float  # α
    groups: int  # groups with at least one sample: valid + all_right + all_wrong + singletons
    all_right: int  # groups of two or more whose common reward is > 0
    all_wrong: int  # groups of two or more whose common reward is <= 0
    singletons: int  # groups of one sample

    @property
    def valid_share(self) -> float:
        """(B − M) / B, which β_th bounds from below; 0 for a batch without samples."""
        return (self.B - self.M) / self.B if self.B else 0.0


@torch.no_grad()
def group_statistics(
    scores: torch.Tensor,
    index: np.ndarray | Sequence,
    lengths: torch.Tensor,
    *,
    f_norm: str = "1",
    alpha: str = "sample",
    magnitudes: torch.Tensor | None = None,
) -> GroupStatistics:
    """Â_i, α, B and M from one reward and one length per response. Groups may differ in size, rows may be
    in any order.

    Args:
        scores: (rows,) reward r_i of the response, as `ragged.row_rewards` returns it.
        index: (rows,) group id of the row, anything hashable (veRL: a numpy array of uid strings).
        lengths: (rows,) number of response tokens |o_i|; 0 marks a padding row, whose reward is ignored.
        f_norm: "1", or "std" for the group's sample standard deviation (N − 1).
        alpha: "sample" for B / (B − M); "token" for Σ|o_i| over all samples / Σ|o_i| over those of valid
            groups, the exact counterpart for a loss averaged over tokens; "none" for 1. Always 1 if no
            group is valid.
        magnitudes: (rows,) Σ_t|r_i,t|, where it may exceed |r_i|; it bounds how far rounding can move r_i.

    Rewards of a group that differ by no more than 4 · eps · max_i Σ_t|r_i,t| (eps of the dtype of `scores`)
    are one and the same reward: seven token rewards of 0.1 equal one of 0.7. In float32 this is 5e-7 on
    rewards of size 1.

    Returns advantages in float32, or float64 if `scores` are. Raises ValueError for a NaN or infinite reward
    of a sample, for shapes that do not match and for an unknown `f_norm` or `alpha`.
    """
    _check_choice("f_norm", f_norm, F_NORMS)
    _check_choice("alpha", alpha, ALPHAS)
    magnitudes = scores.abs() if magnitudes is None else magnitudes
    ids = np.asarray(index, dtype=object)
    shapes = {"scores": scores, "index": ids, "lengths": lengths, "magnitudes": magnitudes}
    if scores.dim() != 1 or any(x.shape != tuple(scores.shape) for x in shapes.values()):
        seen = ", ".join(f"{name} {tuple(x.shape)}" for name, x in shapes.items())
        raise ValueError(f"all inputs must have one and the same shape (rows,), got {seen}")

    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    eps = torch.finfo(scores.dtype).eps if scores.is_floating_point() else 0.0
    counted = lengths > 0
    r = scores.double().masked_fill(~counted, 0.0)
    _check_finite(r)

    codes, uids = pd.factorize(ids, use_na_sentinel=False)
    group = torch.from_numpy(codes).to(r.device)

    def total(x: torch.Tensor) -> torch.Tensor:
        return r.new_zeros(len(uids)).index_add_(0, group, x.masked_fill(~counted, 0.0))

    def largest(x: torch.Tensor) -> torch.Tensor:
        x = x.masked_fill(~counted, -torch.inf)
        return r.new_full((len(uids),), -torch.inf).scatter_reduce_(0, group, x, "amax")

    size = total(torch.ones_like(r))
    mean = total(r) / size.clamp(min=1)
    rounding = EQUAL_WITHIN_EPS * eps * largest(magnitudes.double())
    spread = largest(r) + largest(-r)  # max − min
    group_valid = spread > rounding
    valid = group_valid.index_select(0, group) & counted

    B, valid_samples, tokens, valid_tokens = (
        int(x.sum()) for x in (counted, valid, lengths, lengths.masked_fill(~valid, 0))
    )
    if alpha == "none" or valid_samples == 0:
        α = 1.0
    else:
        α = B / valid_samples if alpha == "sample" else tokens / valid_tokens

    deviation = r - mean.index_select(0, group)  # r_i − mean
    if f_norm == "std":
        std = (total(deviation.square()) / (size - 1).clamp(min=1)).sqrt()
        deviation = deviation / std.masked_fill(~group_valid, 1.0).index_select(0, group)
    advantages = (α * deviation).masked_fill(~valid, 0.0)

    one_reward = (size > 1) & ~group_valid
    all_right = one_reward & (mean > rounding)
    return GroupStatistics(
        advantages=advantages.to(dtype),
        valid=valid,
        counted=counted,
        B=B,
        M=B - valid_samples,
        alpha=α,
        groups=int((size > 0).sum()),
        all_right=int(all_right.sum()),
        all_wrong=int((one_reward & ~all_right).sum()),
        singletons=int((size == 1).sum()),
    )


@dataclass(frozen=True)
class Sessions:
    """Which rows are the outputs of one response."""

    of_row: torch.Tensor  # (rows,) int64: the session of each row, numbered from 0
    final: torch.Tensor  # (sessions,) int64: the row of each session's final output, the only one that is scored


def session_statistics(
    scores: torch.Tensor,
    index: np.ndarray | Sequence,
    lengths: torch.Tensor,
    sessions: Sessions | None,
    *,
    magnitudes: torch.Tensor | None = None,
    left_out: torch.Tensor | None = None,
    **settings,
) -> GroupStatistics:
    """`group_statistics` with a sample for each session: its reward is its final output's, its length that of all its
    outputs, and all its outputs get its advantage. B and M count sessions.

    Args:
        sessions: None where every row is a session of its own.
        left_out: (rows,) bool, rows that are not trained on; they stay in their groups' means, in B and in M.
        The others are those of `group_statistics`, one value per row.

    Returns the statistics with `advantages`, `valid` and `counted` per row; an output without response tokens is
    neither valid nor counted.
    """
    if sessions is None:
        statistics = group_statistics(scores, index, lengths, magnitudes=magnitudes, **settings)
    else:
        final, of_row, written = sessions.final, sessions.of_row, lengths > 0
        statistics = group_statistics(
            scores[final],
            np.asarray(index, dtype=object)[final.numpy()],
            lengths.new_zeros(len(final)).index_add_(0, of_row, lengths),
            magnitudes=None if magnitudes is None else magnitudes[final],
            **settings,
        )
        statistics = replace(
            statistics,
            advantages=statistics.advantages[of_row],
            valid=statistics.valid[of_row] & written,
            counted=statistics.counted[of_row] & written,
        )
    if left_out is not None:
        advantages = statistics.advantages.masked_fill(left_out, 0.0)
        statistics = replace(statistics, advantages=advantages, valid=statistics.valid & ~left_out)
    return statistics


@torch.no_grad()
def gpg_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray | Sequence,
    *,
    f_norm: str = "1",
    alpha: str = "sample",
    sessions: Sessions | None = None,
    lengths: torch.Tensor | None = None,
    left_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, GroupStatistics]:
    """Per-token advantages and returns from token-level rewards.

    Args:
        token_level_rewards: (rows, T). All rewards of a sample count, also those on tokens outside its mask
            (a tool's answer, say), as in veRL's other estimators.
        response_mask: (rows, T) int, bool or float; non-zero on the tokens the policy wrote.
        index, f_norm, alpha: as in `group_statistics`.
        sessions, left_out: as in `session_statistics`.
        lengths: (rows,) response tokens per row, where the mask leaves some out (rejection sampling): what is rejected
            is still a sample. By default those of the mask.

    Returns:
        advantages: (rows, T) Â_i on the response tokens, 0 elsewhere.
        returns: (rows, T) undiscounted rewards-to-go Σ_{s>=t} r_i,s on the response tokens, 0 elsewhere.
        statistics: of the groups.

    Both tensors are float32, or float64 if the rewards are. Raises ValueError as `group_statistics` does.
    """
    if token_level_rewards.dim() != 2 or token_level_rewards.shape != response_mask.shape:
        raise ValueError(
            "token_level_rewards and response_mask must have one and the same shape (rows, T), "
            f"got {tuple(token_level_rewards.shape)} and {tuple(response_mask.shape)}"
        )
    rows, T = token_level_rewards.shape
    mask = response_mask.bool()
    lengths = mask.sum(-1) if lengths is None else lengths
    rewards = token_level_rewards.masked_fill((lengths == 0).unsqueeze(-1), 0.0)  # those of padding may be anything
    offsets = T * torch.arange(rows + 1, device=rewards.device)
    scores, magnitudes = row_rewards(rewards.flatten(), offsets)
    statistics = session_statistics(
        scores,
        index,
        lengths,
        sessions,
        f_norm=f_norm,
        alpha=alpha,
        magnitudes=magnitudes,
        left_out=left_out,
    )
    to_go = rewards.to(statistics.advantages.dtype).flip(-1).cumsum(-1).flip(-1)
    returns = torch.where(mask, to_go, 0.0)
    advantages = torch.where(mask, statistics.advantages.unsqueeze(-1), 0.0)
    return advantages, returns, statistics


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; allowed: {', '.join(map(repr, allowed))}")


def _check_finite(scores: torch.Tensor) -> None:
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad:
        first = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise ValueError(
            f"the rewards of {len(bad)} of {len(scores)} rows are NaN or infinite (rows {first}); a reward "
            "must be a finite number: make the reward function return one for these responses"
        )
