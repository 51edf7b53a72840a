"""Log-probs of tokens from logits, in the precision of fp32 at least, and their backward."""

from __future__ import annotations

import torch
from verl.utils import torch_functional

CHUNK = 1024  # rows of logits that are computed at once: what else is held of them is no more than that


def log_probs_of(logits: torch.Tensor, token: torch.Tensor, in_place: bool) -> torch.Tensor:
    """(n,) log softmax(logits)[i, token[i]] of (n, vocabulary) logits.

    With veRL's fused kernel where flash-attn is installed: 6 bytes are moved a logit in bf16. Elsewhere 16.

    Args:
        in_place: the backward may write the gradient over the logits, as nobody else needs them in it.
    """
    if torch_functional.FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE:
        return torch_functional.logprobs_from_logits(logits, token, inplace_backward=in_place)
    return _LogProbs.apply(logits, token, in_place)


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, token, in_place):
        # Under autocast torch would compute each softmax from a copy in fp32. It adds up in fp32 as it is; what it
        # rounds in half precision is the result, which is near 0 where it is largest.
        with torch.autocast(logits.device.type, enabled=False):
            total = [_precise(part.amax(-1)) - _precise(part.log_softmax(-1).amax(-1)) for part in logits.split(CHUNK)]
        log_probs = _precise(logits.gather(-1, token[:, None])[:, 0]) - torch.cat(total)
        ctx.save_for_backward(logits, token, log_probs)
        ctx.in_place = in_place
        return log_probs

    @staticmethod
    def backward(ctx, gradient):
        logits, token, log_probs = ctx.saved_tensors
        result = logits if ctx.in_place else torch.empty_like(logits)
        for out, part, weight in zip(*(x.split(CHUNK) for x in (result, logits, -gradient)), strict=True):
            torch.mul(part.softmax(-1), weight[:, None], out=out)
        of_token = gradient * -log_probs.expm1()
        return result.scatter_(-1, token[:, None], of_token[:, None].to(result.dtype)), None, None


def _precise(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()
