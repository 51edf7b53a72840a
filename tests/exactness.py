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
from definition import by_definition, difference
from omegaconf import OmegaConf

__all__ = ["by_definition", "difference"]

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


def assert_same(seen: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(seen) == len(expected)
    for g, e in zip(seen, expected, strict=True):
        assert difference(g, e) <= 1e-6
        assert torch.linalg.norm(g).item() == pytest.approx(torch.linalg.norm(e).item(), rel=1e-6)
