"""Are the passes of an update exact with this model? Seen on rows of the batch, before it is trained on them.

The longest group is computed veRL's way and ours, forward and backward, in the run's own micro-batches and precision.
Where the gradients are farther apart than rounding alone would have them, the same rows in other micro-batches say how
far that precision takes them apart by itself: four passes over the group at most. Parameters and optimizer stay as they
are. Rows twice as long as any before, and the first images, are checked again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id

from gpg_verl.compat.seams import replaced
from gpg_verl.training.passes import Passes

# The norm of the gradients' difference over the gradient's, by precision: exact up to the first, wrong past the second.
# Between the two it may be NOISE times as much as that of the rows' own passes.
BOUNDS = {torch.float32: (1e-5, 1e-3), torch.bfloat16: (0.016, 0.1), torch.float16: (2e-3, 0.05)}
NOISE = 4

# What a model's code or ours raises on inputs that it does not take.
ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, NameError, AssertionError)


class SelfCheck:
    """The check of one worker's passes; all ranks call it together.

    refused: of each kind of passes that is not exact, why.
    longest: of each kind, tokens of the longest row that it was checked with.
    images: the kinds that were checked with images.
    """

    def __init__(self, passes: Passes):
        self.passes = passes
        self.refused: dict[str, str] = {}
        self.longest: Counter[str] = Counter()
        self.images: set[str] = set()

    def due(self, kind: str, longest: int, images: bool) -> bool:
        """Whether rows of so many tokens, with or without images, are beyond what was checked."""
        new = longest >= 2 * self.longest[kind] or (images and kind not in self.images)
        return new and kind not in self.refused

    def __call__(self, kind: str, data: TensorDict, longest: int, images: bool) -> None:
        """Checks one kind of passes, and notes in `refused` why it is not exact.

        Args:
            kind: "trees", or "rows": veRL's own with the vocabulary only where a token is scored.
            data: the rows to be checked, as many on each rank, with the engine's settings of a training batch.
            longest, images: of the batch on all ranks.
        """
        passes = self.passes
        self.longest[kind] = longest
        self.images |= {kind} if images else set()
        with replaced(passes.engine, "scaler", None):  # the sum of log-probs needs none
            try:
                reason = self._difference(kind, data)
            finally:
                passes.engine.optimizer_zero_grad()
                passes.counts.clear()
        if reason:
            model, attention = type(passes.model).__name__.removeprefix("FSDP"), passes.config._attn_implementation
            layers = ", ".join(sorted(set(getattr(passes.config, "layer_types", None) or ["full_attention"])))
            rows = f"rows of up to {longest} tokens" + (" with images" if images else "")
            self.refused[kind] = f"{model} with attention {attention} in layers of {layers}, {rows}: {reason}"

    def _difference(self, kind: str, data: TensorDict) -> str | None:
        """What is wrong with this kind of passes; None where they are exact."""
        engine, attention = self.passes.engine, self.passes.attention
        exact, wrong = BOUNDS.get(getattr(engine, "_autocast_dtype", torch.float32), BOUNDS[torch.bfloat16])
        rows = Sum(engine, 1, data)
        calls, attention.refused, failed = attention.calls, "", ""
        with self.passes.during_update(kind == "trees"):
            try:
                ours = Sum(engine, -1, data)
            except ERRORS as error:
                failed = f"{type(error).__name__}: {error}"
        if kind == "trees" and attention.calls == calls:
            return "its attention does not go through transformers' registry" + (f" ({failed})" if failed else "")
        if reason := self.passes.refused() or failed:
            return reason
        apart = ours.norm / rows.norm if rows.norm else ours.norm
        if apart <= exact:
            return None
        noise = 0.0
        if apart <= wrong:
            engine.optimizer_zero_grad()
            Sum(engine, 1, data)
            noise = Sum(engine, -1, in_other_micro_batches(data)).norm / rows.norm
            if apart <= NOISE * noise:
                return None
        log_probs = (ours.log_probs - rows.log_probs).abs().mean().item()
        return f"computed both ways, log-probs are {log_probs:.1e} apart, gradients {apart:.1e} of their norm" + (
            f", and {noise:.1e} in other micro-batches" if noise else ""
        )


class Sum:
    """Adds to the gradient, by the engine's passes, that of `sign` times the weighted sum of the rows' log-probs.

    Each row has a weight of its own, so that rows which are taken for one another show, and all have one sign, so that
    no rounding is left of a gradient that cancels out.

    norm: of all ranks' gradient afterwards.
    log_probs: (tokens,) of this rank's rows.
    """

    def __init__(self, engine, sign: int, data: TensorDict):
        self.sign, self.rows = sign, {}
        engine.forward_backward_batch(data, self._loss)
        self.norm = gradient_norm(engine.module)
        self.log_probs = torch.cat([self.rows[number] for number in sorted(self.rows)])

    def _loss(self, model_output, data, dp_group=None):
        prompts, loss = data["prompts"].offsets().diff().tolist(), 0.0
        masks, log_probs = data["response_mask"].unbind(), model_output["log_probs"].unbind()
        for number, prompt, mask, row in zip(data["number"].tolist(), prompts, masks, log_probs, strict=True):
            written = row[prompt - 1 : -1] * mask
            loss = loss + self.sign * (1 + number % 3 / 2) * written.sum()
            if mask.any():  # not a pass for the other ranks' sake
                self.rows[number] = written.detach().float()
        return loss, {}


def in_other_micro_batches(data: TensorDict) -> TensorDict:
    """The same rows the other way round, in as many micro-batches as can be."""
    other = tu.index_select_tensor_dict(data, list(range(len(data)))[::-1])
    longest = int(data["input_ids"].offsets().diff().max())
    tu.assign_non_tensor(other, micro_batch_size_per_gpu=1, max_token_len_per_gpu=longest)
    return other


def longest_groups(data: TensorDict, images: Sequence[bool]) -> list[int]:
    """The rows of the longest row's group, and of the longest one's with images where any has some. A group is what
    begins with its prompt: the shortest one of any row that the longest row begins with, so that it has later turns of
    sessions too.
    """
    rows, prompts = data["input_ids"].unbind(), data["prompts"].unbind()

    def begins(row, start) -> bool:
        return len(row) >= len(start) and torch.equal(row[: len(start)], start)

    found: dict[int, None] = {}
    for some in (range(len(rows)), [i for i, shown in enumerate(images) if shown]):
        if some:
            longest = rows[max(some, key=lambda i: len(rows[i]))]
            prompt = min((start for start in prompts if begins(longest, start)), key=len)
            found.update(dict.fromkeys(i for i, row in enumerate(rows) if begins(row, prompt)))
    return list(found)


def gradient_norm(module: torch.nn.Module) -> float:
    """Of all ranks' parts together."""
    total = torch.zeros((), dtype=torch.float64, device=get_device_id())
    for gradient in (parameter.grad for parameter in module.parameters() if parameter.grad is not None):
        local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
        total += torch.linalg.vector_norm(local, dtype=torch.float64).square().to(total.device)
    torch.distributed.all_reduce(total)
    return total.sqrt().item()
