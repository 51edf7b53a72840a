"""The gradient as the paper defines it, computed row by row without veRL: what every update is compared with."""

from __future__ import annotations

from pathlib import Path

import torch


def by_definition(folder: Path, rollouts, left_out=(), mode="token-mean") -> torch.Tensor:
    """∇ of −1/Σ|o_i| · Σ_i Σ_t log π_θ(o_i,t | q, o_i,<t) · Â_i with α = B/(B−M), F_norm = 1 (paper, section 3);
    with seq-mean-token-mean, of the mean over responses of their token means.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    sees = hasattr(AutoConfig.from_pretrained(folder / "model"), "vision_config")
    model_class = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model = model_class.from_pretrained(folder / "model", dtype=torch.float64)
    rows = [rollouts.rows[key] for key in rollouts.keys]
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row["uid"], []).append(row["rm_scores"].sum().item())
    B = len(rows)
    M = sum(len(rewards) for rewards in groups.values() if len(set(rewards)) == 1)
    tokens = sum(len(row["responses"]) for row in rows)
    loss = torch.zeros((), dtype=torch.float64)
    for key, row in zip(rollouts.keys, rows, strict=True):
        if key in left_out:
            continue
        rewards = groups[row["uid"]]
        advantage = B / (B - M) * (row["rm_scores"].sum().item() - sum(rewards) / len(rewards))
        ids = row["input_ids"]
        vision = {"position_ids": row["position_ids"].unsqueeze(1), **row["multi_modal_inputs"]} if sees else {}
        log_probs = model(ids.unsqueeze(0), **vision).logits[0].log_softmax(-1)
        start = len(row["prompts"])
        written = log_probs[start - 1 : -1].gather(-1, ids[start:].unsqueeze(-1))
        weight = 1 / tokens if mode == "token-mean" else 1 / len(written) / B
        loss = loss - written.sum() * advantage * weight
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]).float()


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The norm of the difference, in parts of the norm of `b`."""
    return (torch.linalg.norm(a - b) / torch.linalg.norm(b)).item()
