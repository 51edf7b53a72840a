"""How well trainer and rollout agree on the tokens of an update, under veRL's own names.

veRL measures this in a forward pass of its own over the whole batch. GPG has no such pass; the update's own forward
sees the same log-probs, on the rows that it computes. Sums are kept in float64, so that micro-batches and ranks add up
to what one look at all rows would give. The actor worker measures, the trainer judges (rollout_check.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from verl.workers.utils.padding import no_padding_2_padding

# Of the tokens, left out of a gap: single ones may be nats apart in a healthy run in bf16, where the two round an
# unlikely token or an expert's choice differently. Other images, or other weights, are seen by all tokens.
FARTHEST = 0.02
ROWS = 64  # of each rank and kind, behind a gap: enough for its measure, and few to gather
COMPARED = "gpg_compared"  # (rows,) bool of an update's rows: sampled with the weights that the trainer has now


class Gap(NamedTuple):
    """How far the trainer's log-probs and the rollout's are apart, in nats.

    root_mean_square: of all but the FARTHEST of the differences; nan where one is nan.
    largest: of all.
    """

    root_mean_square: float
    largest: float
    tokens: int
    rows: int

    @classmethod
    def of(cls, rows: list[torch.Tensor]) -> Gap:
        """Of each row's differences, (tokens,) each."""
        apart = torch.cat(rows).abs()
        kept = apart.sort().values[: max(1, int(len(apart) * (1 - FARTHEST)))]
        mean_square = math.nan if apart.isnan().any() else kept.square().mean().item()
        return cls(math.sqrt(mean_square), apart.max().item(), len(apart), len(rows))


@dataclass
class Agreement:
    """Sums over the response tokens seen so far; p is the trainer's probability of a token, q the rollout's.

    moments: float64 Σ1, Σ|p−q|, Σ(p−q)², Σp, Σq, Σp², Σq², Σpq.
    largest: max |p−q|.
    correction: (veRL's `rollout_corr/*`, rows, tokens) of each part.
    differences: of rows that are compared, by what they show (`text`, `images`): log p − log q, (tokens,) each.
    """

    moments: list[float] = field(default_factory=lambda: [0.0] * 8)
    largest: float = 0.0
    correction: list[tuple[dict[str, float], int, int]] = field(default_factory=list)
    rows: int = 0
    differences: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def observe(self, loss_fn: Callable, correction: Mapping[str, Any] | None) -> Callable:
        """veRL's loss of a micro-batch, looked at on the way. `correction`: as in `gpg_policy_loss`."""

        def loss(*args, model_output, data: TensorDict, **others):
            log_prob = no_padding_2_padding(model_output["log_probs"], data).detach()
            rows = data.select("rollout_log_probs", "response_mask").to_padded_tensor()
            rollout_log_prob, mask = rows["rollout_log_probs"], rows["response_mask"].bool()
            self.add(log_prob, rollout_log_prob, mask, correction)
            self.compare(log_prob, rollout_log_prob, mask, data)
            return loss_fn(*args, model_output=model_output, data=data, **others)

        return loss

    @torch.no_grad()
    def add(self, log_prob, rollout_log_prob, mask, correction: Mapping[str, Any] | None = None) -> None:
        """Adds a micro-batch: all tensors are (rows, T)."""
        from verl.trainer.ppo import rollout_corr_helper

        written = mask.any(-1)
        if not written.any():
            return
        log_prob, rollout_log_prob, mask = log_prob[written], rollout_log_prob[written], mask[written]
        p, q = log_prob[mask].double().exp(), rollout_log_prob[mask].double().exp()
        d = (p - q).abs()
        new = torch.stack([torch.ones_like(d).sum(), *(x.sum() for x in (d, d * d, p, q, p * p, q * q, p * q))])
        self.moments = [a + b for a, b in zip(self.moments, new.tolist(), strict=True)]
        self.largest = max(self.largest, d.max().item())
        self.rows += len(mask)
        if correction is None:
            metrics = rollout_corr_helper.compute_rollout_corr_metrics_from_logprobs(log_prob, rollout_log_prob, mask)
        else:
            _, _, metrics = rollout_corr_helper.compute_rollout_correction_and_rejection_mask(
                log_prob, rollout_log_prob, mask, **correction
            )
        self.correction.append((metrics, len(mask), int(mask.sum())))

    def compare(self, log_prob, rollout_log_prob, mask, data: TensorDict) -> None:
        """Keeps the differences of rows that are COMPARED, up to ROWS of a kind."""
        if COMPARED not in data:
            return
        shown = data.get("multi_modal_inputs", None)
        for i in (data[COMPARED] & mask.any(-1).to(data[COMPARED].device)).nonzero().flatten().tolist():
            kind = "images" if shown is not None and getattr(shown[i], "data", shown[i]) else "text"
            rows = self.differences.setdefault(kind, [])
            if len(rows) < ROWS:
                rows.append((log_prob[i] - rollout_log_prob[i])[mask[i]].float().cpu())

    def gaps(self) -> dict[str, Gap]:
        """By what rows show, of those that were compared."""
        return {kind: Gap.of(rows) for kind, rows in self.differences.items()}

    def merge(self, other: Agreement) -> None:
        """Adds what another rank saw."""
        self.moments = [a + b for a, b in zip(self.moments, other.moments, strict=True)]
        self.largest = max(self.largest, other.largest)
        self.correction = self.correction + other.correction
        self.rows += other.rows
        for kind, rows in other.differences.items():
            self.differences.setdefault(kind, []).extend(rows)

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
