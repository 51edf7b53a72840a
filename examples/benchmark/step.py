"""Seconds and memory of a step's training half: GPG against what veRL ships, on the same recorded rollouts.

    python examples/benchmark/step.py             # a model of SmolLM2-135M's size, 64 responses: about half an hour
    python examples/benchmark/step.py --shares 0.25 --checkpointing off

The trainers are the real ones (old log-probs, reference, advantages, update), the engine is FSDP2 on this machine in
fp32; they take turns on one batch. Every response has the same length, so that padding plays no part; every contender
has the same micro-batches and no entropy in its update (veRL's pass computes one regardless). A valid share v means
that v of the batch's groups, and so of its prompt and response tokens, are mixed. With the cost of a forward pass as 1
and of an update as u (3, with gradient checkpointing 4), the floor is u·v/(1+u) of veRL's gpg and u·v/(2+u) of GRPO
with a reference.

The whole step adds generation: vLLM's seconds for the same number and length of responses, measured here; DAPO's
filtering generates 1/v times as many.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

os.environ["VERL_PLATFORM"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
import verl  # noqa: F401
from actors import Actors, Recording, recorded_step
from rich.console import Console
from rich.progress import track
from rich.table import Table

N = 8  # responses a prompt
PROMPT_TOKENS = 16


@dataclass(frozen=True)
class Contender:
    name: str
    overrides: tuple[str, ...]
    ours: bool = False
    verls_gpg: bool = False
    filtered: bool = False  # DAPO: the batch is filled up with valid groups


VERL_GPG = ("algorithm.adv_estimator=gpg", "actor_rollout_ref.actor.policy_loss.loss_mode=gpg")
CONTENDERS = (
    Contender("gpg_verl", ("algorithm.adv_estimator=gpg",), ours=True),
    Contender("veRL gpg", VERL_GPG, verls_gpg=True),
    Contender("veRL grpo", ("algorithm.adv_estimator=grpo",)),
    Contender("veRL grpo + KL", ("algorithm.adv_estimator=grpo", "actor_rollout_ref.actor.use_kl_loss=True")),
    Contender("DAPO filter (gpg)", VERL_GPG, verls_gpg=True, filtered=True),
)


def make_model(folder: Path) -> Path:
    """Random weights of SmolLM2-135M's shape, and any tokenizer: the actor only sees token ids."""
    vocabulary = ["<pad>", "<eos>", *(f"t{i}" for i in range(2, 49152))]
    marks = {"pad_token": "<pad>", "eos_token": "<eos>"}
    tokenizer = tiny.make_tokenizer(vocabulary, None, "{{ messages[0]['content'] }}", **marks)
    shape = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }
    return tiny.make_llama(folder, tokenizer, 2048, shape)


def config_of(contender: Contender, arguments, checkpointing: bool):
    from gpg_verl.launch.check import compose
    from gpg_verl.launch.settle import settle

    overrides = [
        "+preset=cpu",
        *contender.overrides,
        f"data.train_batch_size={arguments.rows // N}",
        f"data.max_response_length={arguments.tokens}",
        f"actor_rollout_ref.model.path={arguments.model}",
        f"actor_rollout_ref.model.enable_gradient_checkpointing={checkpointing}",
        f"actor_rollout_ref.rollout.n={N}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={arguments.rows // N}",
        *(
            f"actor_rollout_ref.{key}={arguments.micro}"
            for key in (
                "actor.ppo_micro_batch_size_per_gpu",
                "rollout.log_prob_micro_batch_size_per_gpu",
                "ref.log_prob_micro_batch_size_per_gpu",
            )
        ),
    ]
    config = compose(overrides)
    if contender.ours:
        settle(config, overrides)
    return config


def rewards(groups: int, share: float) -> list[list[float]]:
    valid = round(groups * share)
    return [[1.0] * (N // 2) + [0.0] * (N - N // 2)] * valid + [[0.0] * N] * (groups - valid)


def verls_own_gpg():
    from verl.trainer.ppo import core_algos

    adv, loss = core_algos.ADV_ESTIMATOR_REGISTRY, core_algos.POLICY_LOSS_REGISTRY
    return (
        mock.patch.dict(adv, {"gpg": core_algos.compute_gpg_outcome_advantage}),
        mock.patch.dict(loss, {"gpg": core_algos.compute_policy_loss_gpg}),
    )


def measure(contender: Contender, config, share: float, arguments, actors) -> dict[str, float]:
    """One step: seconds of the stages, of the optimizer, and the peak of memory."""
    from verl.trainer.ppo.v1 import PPOTrainerSync

    from gpg_verl.training.trainer import GPGTrainerSync

    tokens = (arguments.tokens, arguments.tokens)
    share = 1.0 if contender.filtered else share
    recording = Recording.random(
        rewards(arguments.rows // N, share), vocabulary=49152, prompt=PROMPT_TOKENS, response=tokens
    )
    actors.call("reset")
    adv, loss = verls_own_gpg()
    with adv if contender.verls_gpg else mock.MagicMock(), loss if contender.verls_gpg else mock.MagicMock():
        step = recorded_step(GPGTrainerSync if contender.ours else PPOTrainerSync, config, recording, actors)
        if contender.ours:
            step.trainer._passes()  # checks the engine, once a run and not a step
        actors.call("start_memory")
        metrics, timing = step()
    return {
        "actor": sum(timing.get(stage, 0.0) for stage in ("old_log_prob", "ref", "update_actor")),
        "update": timing["update_actor"],
        "passes": timing.get("old_log_prob", 0.0) + timing.get("ref", 0.0),
        "optimizer": actors.call("seconds")[0],
        "memory": actors.call("peak_memory")[0],
        "rows": float(arguments.rows - metrics.get("gpg/rows_dropped", 0)),
    }


GENERATE = """
import sys, time, json
from vllm import LLM, SamplingParams
model, rows, n, prompt, tokens = sys.argv[1], *map(int, sys.argv[2:6])
llm = LLM(model, dtype="float32", enforce_eager=True, max_model_len=prompt + tokens + 1, max_num_seqs=64,
          kv_cache_memory_bytes=1 << 29, block_size=16, skip_tokenizer_init=True)
ask = [{"prompt_token_ids": [2 + i] * prompt} for i in range(rows // n)]
params = SamplingParams(n=n, max_tokens=tokens, ignore_eos=True, detokenize=False)
llm.generate(ask[:1], params, use_tqdm=False)
started = time.perf_counter()
llm.generate(ask, params, use_tqdm=False)
print("SECONDS", time.perf_counter() - started)
"""


def generation_seconds(arguments) -> float:
    shape = [str(x) for x in (arguments.model, arguments.rows, N, PROMPT_TOKENS, arguments.tokens)]
    done = subprocess.run([sys.executable, "-c", GENERATE, *shape], capture_output=True, text=True, check=False)
    line = [line for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    if not line:
        raise SystemExit(f"vLLM did not generate:\n{done.stderr[-2000:]}")
    return float(line[0].split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a local model (default: random weights of SmolLM2-135M's shape)")
    parser.add_argument("--rows", type=int, default=64, help="responses in the batch (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each response (default %(default)s)")
    parser.add_argument("--micro", type=int, default=8, help="rows per forward pass (default %(default)s)")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0], help="valid shares")
    parser.add_argument("--repeat", type=int, default=1, help="steps of each contender; the median counts")
    parser.add_argument("--checkpointing", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--no-generation", action="store_true", help="leave out the whole step")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    folder = tempfile.TemporaryDirectory()
    arguments.model = arguments.model or str(make_model(Path(folder.name)))

    console = Console(width=130)
    generation = 0.0 if arguments.no_generation else generation_seconds(arguments)
    figures = {"generation": generation, "rows": arguments.rows, "tokens": arguments.tokens, "steps": []}
    for checkpointing in [setting == "on" for setting in arguments.checkpointing]:
        configs = {c: config_of(c, arguments, checkpointing) for c in CONTENDERS}
        with Actors(configs[CONTENDERS[0]]) as actors:
            actors.call("time_optimizer")
            measure(
                CONTENDERS[-1], configs[CONTENDERS[-1]], 1.0, arguments, actors
            )  # warm: AdamW's state, the allocator
            for share in arguments.shares:
                seen = {c: [] for c in CONTENDERS}
                work = [c for _ in range(arguments.repeat) for c in CONTENDERS]
                for contender in track(work, f"share {share:.0%}, checkpointing {checkpointing}", console=console):
                    seen[contender].append(measure(contender, configs[contender], share, arguments, actors))
                medians = {
                    c.name: {key: statistics.median(m[key] for m in runs) for key in runs[0]}
                    for c, runs in seen.items()
                }
                for contender in CONTENDERS:
                    factor = 1 / share if contender.filtered else 1.0
                    medians[contender.name]["whole"] = medians[contender.name]["actor"] + generation * factor
                figures["steps"].append({"share": share, "checkpointing": checkpointing, "medians": medians})
                console.print(table(share, checkpointing, medians, generation))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def table(share: float, checkpointing: bool, medians: dict, generation: float) -> Table:
    u = 4 if checkpointing else 3
    ours = medians["gpg_verl"]
    result = Table(
        title=f"valid share {share:.0%}, gradient checkpointing {'on' if checkpointing else 'off'} "
        f"(generation {generation:.1f} s; floor of veRL gpg {u * share / (1 + u):.3f}, "
        f"of grpo + KL {u * share / (2 + u):.3f})"
    )
    for column in ("", "actor side", "passes", "update", "optimizer", "ours / it", "whole step, ours / it", "peak GB"):
        result.add_column(column, justify="left" if not column else "right")
    for name, m in medians.items():
        result.add_row(
            name,
            *(f"{m[key]:.2f} s" for key in ("actor", "passes", "update", "optimizer")),
            f"{ours['actor'] / m['actor']:.3f}",
            f"{ours['whole'] / m['whole']:.3f}",
            f"{m['memory']:.2f}",
        )
    return result


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s")
