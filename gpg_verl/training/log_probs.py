"""Log-probs of tokens from logits, in the precision of fp32 at least, and their backward."""

from __future__ import annotations

import torch
from verl.utils import torch_functional

HALF = (torch.bfloat16, torch.float16)
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
        peak = _precise(logits.amax(-1))
        rest = torch.cat([_log_rest(part) for part in logits.split(CHUNK)])
        log_probs = _precise(logits.gather(-1, token[:, None])[:, 0]) - peak - rest
        ctx.save_for_backward(logits, token, peak, rest, log_probs)
        ctx.in_place = in_place
        return log_probs

    @staticmethod
    def backward(ctx, gradient):
        logits, token, peak, rest, log_probs = ctx.saved_tensors
        result = logits if ctx.in_place else torch.empty_like(logits)
        for out, part, top, more, weight in zip(
            *(x.split(CHUNK) for x in (result, logits, peak, rest, -gradient)), strict=True
        ):
            half = part.dtype in HALF
            probs = part.softmax(-1) if half else part.sub(top[:, None]).sub_(more[:, None]).exp_()
            torch.mul(probs, weight[:, None], out=out)
        of_token = gradient * -log_probs.expm1()
        return result.scatter_(-1, token[:, None], of_token[:, None].to(result.dtype)), None, None


def _log_rest(logits: torch.Tensor) -> torch.Tensor:
    """(n,) log Σ exp(logits − the largest).

    Torch's softmax adds up half precision in fp32 without a copy, and rounds only its result, which is near 0 where it
    is largest. On a CPU it adds one term after the other: off by 1e-5 nats for a trained model of 49,152 tokens, which
    is nothing beside half precision, but as much as ten layers' rounding in fp32. There the sum is torch's own.
    """
    if logits.dtype not in HALF:
        return (logits - logits.amax(-1, keepdim=True)).exp_().sum(-1).log_()
    with torch.autocast(logits.device.type, enabled=False):  # or torch would make the copy
        return -_precise(logits.log_softmax(-1).amax(-1))


def _precise(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()
