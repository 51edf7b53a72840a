"""The gradient of GPG's step on this machine's device, against the paper's definition in float64.

    python examples/benchmark/gradient.py                       # on a GPU: fp32 and bf16, about a minute
    python examples/benchmark/gradient.py --json gradient.json

A tiny model, veRL's FSDP2 engine, recorded rollouts with groups of both kinds; the gradient is what the optimizer gets,
before clipping. `again`: the same step once more, which shows how far a device is from repeating itself.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import torch

os.environ["VERL_PLATFORM"] = "" if torch.cuda.is_available() else "cpu"
sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
import verl  # noqa: F401
from actors import Actors, Recording, composed, engine_overrides, recorded_step
from definition import by_definition, difference

PROMPTS, N = 8, 4
REWARDS = [[1, 0, 0, 1], [0] * N, [1] * N, [1, 0, 0, 0], [0, 1, 1, 1], [0] * N, [0] * N, [1, 1, 0, 0]]
PASSES = {"trees": True, "rows": False}
PRECISIONS = ("fp32", "bf16")


def config_of(folder: Path, precision: str, attention: str, shared: bool):
    on_cpus = ("+preset=cpu", "kv_cache_memory_bytes", "actor_rollout_ref.rollout.log_prob_micro")
    return composed(
        [
            *(o for o in tiny.overrides(folder, prompts=PROMPTS, n=N) if not any(part in o for part in on_cpus)),
            *engine_overrides(precision, attention),
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",
            f"+algorithm.gpg.share_prefixes={shared}",
        ]
    )


def measure(folder: Path, precision: str, attention: str, seeds: int) -> list[dict]:
    from gpg_verl.training.trainer import GPGTrainerSync

    rows = []
    with Actors(config_of(folder, precision, attention, shared=True)) as actors:
        actors.call("record_gradients", (0.1,))

        def gradient(config, rollouts):
            actors.call("reset", ("token-mean",))
            run = recorded_step(GPGTrainerSync, config, rollouts, actors)
            metrics, _ = run()
            return actors.call("recorded")[0][0][0], metrics, run.trainer

        for name, shared in PASSES.items():
            config = config_of(folder, precision, attention, shared)
            apart, again, norms = [], [], []
            for seed in range(seeds):
                rollouts = Recording.random(REWARDS, vocabulary=30, prompt=6, response=(1, 16), words=3, seed=seed)
                expected = by_definition(folder, rollouts)
                first, metrics, trainer = gradient(config, rollouts)
                second, *_ = gradient(config, rollouts)
                apart.append(difference(first, expected))
                again.append(difference(second, first))
                norms.append((torch.linalg.norm(first) / torch.linalg.norm(expected)).item())
            rows.append(
                {
                    "precision": precision,
                    "passes": name,
                    "in_force": bool(metrics["gpg/tokens_shared"]) == shared,
                    "why_not": trainer.unsupported[name],
                    "difference": max(apart),
                    "again": max(again),
                    "norm": max(norms, key=lambda norm: abs(norm - 1)),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="batches of rollouts (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--attention", default="sdpa", help="of a GPU's bf16 (default %(default)s)")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 is meant
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    figures = {"device": device, "torch": torch.__version__, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        made = tiny.make(Path(folder) / "tiny")
        for precision in PRECISIONS:
            figures["rows"] += measure(made, precision, arguments.attention, arguments.seeds)
            if arguments.json:
                arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
