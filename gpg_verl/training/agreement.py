"""How well trainer and rollout agree on the tokens of an update, under veRL's own names.

veRL measures this in a forward pass of its own over the whole batch. GPG has no such pass; the update's own forward
sees the same log-probs, on the rows that it computes. Sums are kept in float64, so that micro-batches and ranks add up
to what one look at all rows would give. Pure torch; veRL's helper comes in for `rollout_corr/*`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch


@dataclass
class Agreement:
    """Sums over the response tokens seen so far; p is the trainer's probability of a token, q the rollout's.

    moments: float64 Σ1, Σ|p−q|, Σ(p−q)², Σp, Σq, Σp², Σq², Σpq.
    largest: max |p−q|.
    correction: (veRL's `rollout_corr/*`, rows, tokens) of each part.
    """

    moments: list[float] = field(default_factory=lambda: [0.0] * 8)
    largest: float = 0.0
    correction: list[tuple[dict[str, float], int, int]] = field(default_factory=list)
    rows: int = 0

    @torch.no_grad()
    def add(self, log_prob, rollout_log_prob, mask, correction: dict[str, float] | None = None) -> None:
        """Adds a micro-batch: all tensors are (rows, T). `correction`: veRL's metrics where it was computed already."""
        written = mask.bool().any(-1)
        if not written.any():
            return
        log_prob, rollout_log_prob, mask = log_prob[written], rollout_log_prob[written], mask[written].bool()
        p, q = log_prob[mask].double().exp(), rollout_log_prob[mask].double().exp()
        d = (p - q).abs()
        new = torch.stack([torch.ones_like(d).sum(), *(x.sum() for x in (d, d * d, p, q, p * p, q * q, p * q))])
        self.moments = [a + b for a, b in zip(self.moments, new.tolist(), strict=True)]
        self.largest = max(self.largest, d.max().item())
        self.rows += len(mask)
        if correction is None:
            from verl.trainer.ppo.rollout_corr_helper import compute_rollout_corr_metrics_from_logprobs

            correction = compute_rollout_corr_metrics_from_logprobs(log_prob, rollout_log_prob, mask)
        self.correction.append((correction, len(mask), int(mask.sum())))

    def merge(self, other: Agreement) -> None:
        """Adds what another rank saw."""
        self.moments = [a + b for a, b in zip(self.moments, other.moments, strict=True)]
        self.largest = max(self.largest, other.largest)
        self.correction = self.correction + other.correction
        self.rows += other.rows

    def metrics(self) -> dict[str, float]:
        """veRL's names and definitions (`verl.utils.debug.metrics`, `rollout_corr_helper`); {} if nothing was seen."""
        n, d, dd, p, q, pp, qq, pq = self.moments
        if not n:
            return {}
        spread = math.sqrt(max(0.0, pp - p * p / n) * max(0.0, qq - q * q / n))
        return {
            "training/rollout_probs_diff_valid": 1,
            "training/rollout_probs_diff_max": self.largest,
            "training/rollout_probs_diff_mean": d / n,
            "training/rollout_probs_diff_std": math.sqrt(max(0.0, dd - d * d / n) / (n - 1)) if n > 1 else math.nan,
            "training/rollout_actor_probs_pearson_corr": (pq - p * q / n) / spread if spread else math.nan,
            **_combined(self.correction),
        }


# Of veRL's `rollout_corr/*`, those that are means over tokens; the others are means over rows, maxima and minima.
# (Standard deviations and the effective sample size are averaged like means: exact for one micro-batch.)
TOKEN_MEANS = ("kl", "k3_kl", "chi2_token", "rollout_is_mean", "rollout_is_oob_ratio", "rollout_rs_masked_fraction")


def _combined(parts: list[tuple[dict[str, float], int, int]]) -> dict[str, float]:
    combined = {}
    for key in dict.fromkeys(key for metrics, _, _ in parts for key in metrics):
        seen = [(metrics[key], rows, tokens) for metrics, rows, tokens in parts if key in metrics]
        name = key.removeprefix("rollout_corr/")
        if name.endswith(("_max", "_max_deviation")):
            combined[key] = max(value for value, _, _ in seen)
        elif name.endswith("_min"):
            combined[key] = min(value for value, _, _ in seen)
        else:
            weights = [tokens if name in TOKEN_MEANS else rows for _, rows, tokens in seen]
            total = sum(value * weight for (value, _, _), weight in zip(seen, weights, strict=True))
            combined[key] = total / sum(weights)
    return combined
