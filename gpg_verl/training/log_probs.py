"""The log-probs of scored tokens from the logits, and their backward."""

from __future__ import annotations

import torch


class LogProbs(torch.autograd.Function):
    """log softmax(logits)[at, token], for pairs that differ. The gradient is written over the logits with `in_place`,
    where nobody else needs them in the backward.
    """

    @staticmethod
    def forward(ctx, logits, at, token, in_place):
        total = torch.cat([_precise(part).logsumexp(-1) for part in logits.split(1024)])
        log_probs = _precise(logits[at, token]) - total[at]
        ctx.save_for_backward(logits, total, log_probs, at, token)
        ctx.in_place = in_place
        return log_probs

    @staticmethod
    def backward(ctx, gradient):
        logits, total, log_probs, at, token = ctx.saved_tensors
        passing = torch.zeros_like(total).index_add(0, at, gradient)
        result = logits if ctx.in_place else torch.empty_like(logits)
        for out, part, whole, weight in zip(*(x.split(1024) for x in (result, logits, total, passing)), strict=True):
            out.copy_((_precise(part) - whole[:, None]).exp_().mul_(-weight[:, None]))
        result[at, token] = (gradient - log_probs.exp() * passing[at]).to(result.dtype)
        return result, None, None, None


def _precise(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()
