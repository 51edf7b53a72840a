"""Real trainer steps on recorded rollouts, and what their gradients are compared with.

The gradient is the one the optimizer gets, before clipping, gathered over ranks. AdamW's parameters would hide a wrong
scale, as clipping would: the parameters compared are those after plain SGD.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny
import torch
from omegaconf import OmegaConf

PROMPTS, N, MICRO = 8, 4, 2
RIGHT, WRONG = [1.0] * N, [0.0] * N
# Groups of valid and of zero variance; rows are shuffled, so that they interleave.
MIXED = [[1, 0, 0, 1], WRONG, RIGHT, [1, 0, 0, 0], [0, 1, 1, 1], WRONG, WRONG, [1, 1, 0, 0]]
ALL_VALID = [[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 1, 1]] * 2

ACTOR, CORRECTION = "actor_rollout_ref.actor", "algorithm.rollout_correction"


def settled(folder: Path, *overrides: str):
    """The config of a GPG run, with what GPG implies."""
    import verl  # noqa: F401

    from gpg_verl.launch.check import compose
    from gpg_verl.launch.settle import settle

    overrides = [
        *tiny.overrides(folder, prompts=PROMPTS, n=N),
        f"{ACTOR}.ppo_micro_batch_size_per_gpu={MICRO}",
        f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={MICRO}",
        f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={MICRO}",
        *overrides,
    ]
    config = compose(overrides)
    assert settle(config, overrides).contradictions == []
    return config


def recording(rewards=MIXED, seed=0, **more):
    from actors import Recording

    # Of few different words, so that responses share beginnings and some are alike.
    shape = {"vocabulary": 30, "prompt": 6, "response": (1, 16), "words": 3, **more}
    return Recording.random(rewards, seed=seed, **shape)


@dataclasses.dataclass
class Result:
    gradients: list[torch.Tensor]
    parameters: torch.Tensor
    scheduled: int
    metrics: dict
    trainer: object


def step(actors, config, rollouts, trainer_class=None, steps=1, processor=None) -> Result:
    from actors import recorded_step

    from gpg_verl.training.trainer import GPGTrainerSync

    mode = OmegaConf.select(config, f"{ACTOR}.loss_agg_mode")
    actors.call("reset", *[(mode,)] * actors.ranks)
    before = actors.call("recorded")[0][2]
    run = recorded_step(trainer_class or GPGTrainerSync, config, rollouts, actors, processor)
    for _ in range(steps):
        metrics, _ = run()
    gradients, parameters, scheduled = actors.call("recorded")[0]
    return Result(gradients, parameters, scheduled - before, metrics, run.trainer)


def without_shortcut(updates: int):
    """GPG's trainer with veRL's own update over all rows; `updates`: its mini-batches are ours."""
    from gpg_verl.algorithm.updates import assign
    from gpg_verl.training.keys import RowKey
    from gpg_verl.training.trainer import GPGTrainerSync

    class WithoutShortcut(GPGTrainerSync):
        def __init__(self, config):
            super().__init__(config)
            self.planned = False

        def _balance_batch(self, batch, metrics):
            ranks = self._data_parallel_size()
            mini_batches = assign([RowKey.of(key).uid for key in batch.keys], updates)
            batch.reorder([i for rank in range(ranks) for rows in mini_batches for i in rows[rank::ranks]])
            return batch

    return WithoutShortcut


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (torch.linalg.norm(a - b) / torch.linalg.norm(b)).item()


def assert_same(seen: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(seen) == len(expected)
    for g, e in zip(seen, expected, strict=True):
        assert difference(g, e) <= 1e-6
        assert torch.linalg.norm(g).item() == pytest.approx(torch.linalg.norm(e).item(), rel=1e-6)


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
