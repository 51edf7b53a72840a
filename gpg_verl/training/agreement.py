"""How well trainer and rollout agree on the tokens of an update: veRL's measures, and the gap that is judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch.nn.utils.rnn import pad_sequence
from verl import DataProto
from verl.utils.debug.metrics import calculate_debug_metrics
from verl.workers.utils.padding import no_padding_2_padding

from gpg_verl.training.images import shown_by

# Of the tokens, left out of a gap: single ones may be nats apart in a healthy run in bf16, where the two round an
# unlikely token or an expert's choice differently. Other images, or other weights, are seen by all tokens.
FARTHEST = 0.02
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
    """log_probs: of each micro-batch, (2, tokens) on the CPU, the trainer's and the rollout's of its response tokens.
    rows: of each row, how many these are, and what it shows (text, images) where the two are compared, else None.
    """

    log_probs: list[torch.Tensor] = field(default_factory=list)
    rows: list[tuple[int, str | None]] = field(default_factory=list)

    def observe(self, loss_fn: Callable) -> Callable:
        """veRL's loss of a micro-batch, looked at on the way."""

        def loss(*args, model_output, data: TensorDict, **others):
            padded = data.select("rollout_log_probs", "response_mask").to_padded_tensor()
            mask, log_probs = padded["response_mask"].bool(), no_padding_2_padding(model_output["log_probs"], data)
            self.log_probs.append(torch.stack([log_probs.detach(), padded["rollout_log_probs"]])[:, mask].cpu())
            compared, shown = data.get(COMPARED, torch.zeros(len(mask))).tolist(), shown_by(data)
            for i, tokens in enumerate(mask.sum(-1).tolist()):
                if tokens:
                    kind = "images" if shown and shown[i] else "text"
                    self.rows.append((tokens, kind if compared[i] else None))
            return loss_fn(*args, model_output=model_output, data=data, **others)

        return loss

    def _by_row(self, device: str) -> tuple[torch.Tensor, ...]:
        """(2, tokens) each."""
        tokens = torch.cat([torch.zeros(2, 0), *self.log_probs], dim=1).to(device)
        return tokens.split([count for count, _ in self.rows], dim=1)

    def gaps(self) -> dict[str, Gap]:
        """By what rows show, of those that are compared."""
        rows = [(kind, row) for (_, kind), row in zip(self.rows, self._by_row("cpu"), strict=True) if kind]
        return {kind: Gap.of([row[0] - row[1] for of, row in rows if of == kind]) for kind in dict(rows)}

    def metrics(self, correction: Mapping[str, Any] | None, device: str) -> dict[str, float]:
        """veRL's, under its names; {} where no row was seen. `correction`: as in `gpg_policy_loss`."""
        from verl.trainer.ppo import rollout_corr_helper

        if not self.rows:
            return {}
        rows = self._by_row(device)
        log_probs, of_rollout = (pad_sequence([row[i] for row in rows], batch_first=True) for i in range(2))
        mask = pad_sequence([torch.ones_like(row[0]) for row in rows], batch_first=True).bool()
        batch = {"old_log_probs": log_probs, "rollout_log_probs": of_rollout, "responses": mask, "response_mask": mask}
        metrics = calculate_debug_metrics(DataProto.from_dict(batch))
        if correction is None:
            more = rollout_corr_helper.compute_rollout_corr_metrics_from_logprobs(log_probs, of_rollout, mask)
        else:
            _, _, more = rollout_corr_helper.compute_rollout_correction_and_rejection_mask(
                log_probs, of_rollout, mask, **correction
            )
        return metrics | more
