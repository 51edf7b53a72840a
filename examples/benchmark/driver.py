"""Seconds that GPG's own code takes of a step in the trainer process: statistics, selection, bookkeeping.

    python examples/benchmark/driver.py --rows 65536 --tokens 2048        # needs about 12 GB

GPG's real trainer runs on a stand-in for TransferQueue that answers at once, and with no actor behind it. What is timed
is what a step reports as gpg/driver_seconds: it leaves out TransferQueue's fetches and veRL's own code. Beside it, for
the same batch: padding two token tensors as veRL's trainer does before it computes advantages.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from types import SimpleNamespace
from unittest import mock

os.environ["VERL_PLATFORM"] = "cpu"

import torch
import verl  # noqa: F401
from actors import composed
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from gpg_verl.training.metrics import TOKENS, StepMetrics


def batch(rows: int, tokens: int, group: int) -> tuple[KVBatchMeta, dict[str, torch.Tensor]]:
    """Keys and tags of 0/1-rewarded single-turn rollouts, lengths in 1..tokens; a fifth of the groups are mixed."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, tokens + 1, (rows,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    mixed = torch.rand(rows // group, generator=generator).repeat_interleave(group) < 0.2
    right = mixed & (torch.rand(rows, generator=generator) < 0.5)
    rewards = torch.zeros(int(offsets[-1]))
    rewards[offsets[1:] - 1] = right.float()
    ones = torch.ones(int(offsets[-1]), dtype=torch.int64)
    fields = {
        "rm_scores": torch.nested.nested_tensor_from_jagged(rewards, offsets),
        "response_mask": torch.nested.nested_tensor_from_jagged(ones, offsets),
    }
    order = torch.randperm(rows // group, generator=generator).tolist()
    keys = [f"uid{order[i // group]:08d}_{i % group}_0" for i in range(rows)]
    always = {"status": "success", "prompt_len": 128, "global_steps": 1, "min_global_steps": 1, "max_global_steps": 1}
    tags = [{**always, "seq_len": length + 128, "response_len": length} for length in lengths.tolist()]
    return KVBatchMeta(keys=keys, tags=tags, partition_id="train"), fields


class Store:
    """TransferQueue's calls, answered from memory and without copies."""

    def __init__(self, meta: KVBatchMeta, fields: dict[str, torch.Tensor]):
        self.meta, self.fields = meta, fields

    def kv_batch_get(self, keys, partition_id, select_fields=None):
        return TensorDict({k: v for k, v in self.fields.items() if k in select_fields}, batch_size=len(keys))

    def kv_batch_put(self, keys, partition_id, fields=None, tags=None):
        return self.meta


class NoActor:
    _dispatch_info = {"actor": list(range(8))}  # noqa: RUF012

    def check_passes(self):
        return [{"trees": None, "rows": None}]

    def update_actor(self, part):
        counts = {f"gpg/{name}": [1] for name in TOKENS}
        return {"metrics": {"mfu": [0.0], "actor/pg_loss": [0.0], **counts}}


def trainer_of(rows: int, group: int):
    from gpg_verl.training.trainer import GPGTrainerSync

    overrides = [
        "+preset=cpu",
        "algorithm.adv_estimator=gpg",
        f"data.train_batch_size={rows // group}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={rows // group}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        f"actor_rollout_ref.rollout.n={group}",
    ]
    trainer = GPGTrainerSync(composed(overrides))
    trainer.unsupported = {"trees": None, "rows": None}  # there is no model to ask
    trainer.actor_rollout_wg = NoActor()
    trainer.global_steps, trainer.train_dataset = 1, None
    trainer.tokenizer = SimpleNamespace(eos_token_id=1)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()

    import gpg_verl.training.trainer as ours

    meta, fields = batch(arguments.rows, arguments.tokens, arguments.group)
    trainer = trainer_of(arguments.rows, arguments.group)
    seen = {"statistics and advantages": [], "selection, balancing, bookkeeping": [], "together": []}
    with mock.patch.object(ours, "tq", Store(meta, fields)):
        for _ in range(arguments.repeat):
            trainer.step_metrics = StepMetrics()
            trainer._compute_advantage(meta, {})
            first = trainer.step_metrics.counts["driver_seconds"]
            trainer._update_actor(meta, {})
            both = trainer.step_metrics.counts["driver_seconds"]
            for name, value in zip(seen, (first, both - first, both), strict=True):
                seen[name].append(value)
    for name, values in seen.items():
        print(f"{statistics.median(values):8.3f} s  {name}")

    started = time.perf_counter()
    size = (arguments.rows, arguments.tokens)
    padded = {name: torch.nested.to_padded_tensor(tensor, 0, output_size=size) for name, tensor in fields.items()}
    print(f"{time.perf_counter() - started:8.3f} s  veRL: padding {', '.join(padded)} to {arguments.tokens} tokens")


if __name__ == "__main__":
    main()
