"""GPG's policy loss: pure torch on plain tensors (arXiv 2504.02546)."""

import torch


def gpg_token_loss(
    log_prob: torch.Tensor, advantages: torch.Tensor, rollout_is_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """−log π_θ(o_i,t | q, o_i,<t) · Â_i for every token; its mean over the response tokens is −J(θ).

    Args:
        log_prob: (rows, T) log π_θ of the sampled tokens, with gradient.
        advantages: (rows, T) Â_i, as `gpg_advantage` returns them.
        rollout_is_weights: (rows, T), optional: corrects for a rollout engine whose probabilities differ
            from the actor's. Constants of the loss: no gradient flows through them.

    Returns (rows, T). Tokens outside the response mask are for the caller to leave out.
    """
    # One update per rollout batch: the policy that wrote the tokens is the one being updated. So there is no
    # ratio, nothing to clip, and no old log-probs to compute.
    loss = -log_prob * advantages
    return loss if rollout_is_weights is None else loss * rollout_is_weights.detach()
