"""A step's training half by the shape of its rows: FLOPs, memory and seconds, of GPG and of what veRL ships.

    python examples/benchmark/step.py                                     # FLOPs of all shapes: some minutes
    python examples/benchmark/step.py --shapes sums --model DIR --pairs 5 --generation
    python examples/benchmark/step.py --shapes equal --shares 0.25 0.5 0.75 1 --pairs 3 --checkpointing off on

The trainers are the real ones (old log-probs, reference, advantages, update), the engine is FSDP2 on this machine's
device; they take turns on the same recorded rollouts, eight responses a prompt, with the same micro-batches and no
entropy in the update (veRL's pass computes one regardless). A share of the groups is mixed; DAPO's filtering has mixed
groups alone, and generates 1/share times as many.

FLOPs, on a CPU, are torch's count of what ran (matrix products and attention, causal attention at half), forward and
backward, of the old-log-prob and reference passes too. Memory is the peak of the process, on a GPU of its tensors,
above what there was before the step. Seconds are of a step, in turns; `--generation` adds vLLM's for these responses.
The floor, in parts of veRL's gpg, is

    u/(1+u) · (computed · body + scored · head)/(all · (body + head))

with u the cost of an update in forward passes (3, with gradient checkpointing 4), `computed` the tokens of mixed groups
that no other row has, `scored` the positions that score one, body and head the parameters of layers and vocabulary.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
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

import torch

os.environ["VERL_PLATFORM"] = "" if torch.cuda.is_available() else "cpu"
sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd
import tiny
import verl  # noqa: F401
from actors import Actors, Recording, composed, engine_overrides, recorded_step
from torch.utils.flop_counter import FlopCounterMode
from verl.utils import torch_functional

N = 8  # responses a prompt
SECONDS = ("seconds", "passes", "update", "optimizer")


@dataclass(frozen=True)
class Contender:
    name: str
    overrides: tuple[str, ...]
    ours: bool = False
    filtered: bool = False  # DAPO: the batch is filled up with mixed groups


GPG, GRPO = "algorithm.adv_estimator=gpg", "algorithm.adv_estimator=grpo"
VERL_GPG = (GPG, "actor_rollout_ref.actor.policy_loss.loss_mode=gpg")
CONTENDERS = (
    Contender("gpg_verl", (GPG,), ours=True),
    Contender("row by row", (GPG, "+algorithm.gpg.share_prefixes=False"), ours=True),
    Contender("veRL gpg", VERL_GPG),
    Contender("veRL grpo", (GRPO,)),
    Contender("veRL grpo + KL", (GRPO, "actor_rollout_ref.actor.use_kl_loss=True")),
    Contender("DAPO filter (gpg)", VERL_GPG, filtered=True),
)


@dataclass(frozen=True)
class Shape:
    """prompt: tokens; response: (least, most); words: of how many different tokens responses are made; turns: of a
    session, each of which goes on from the one before with `tool` tokens between.
    """

    prompt: int
    response: tuple[int, int]
    words: int | None = None
    turns: int = 1
    tool: int = 0


SHAPES = {
    "sums": Shape(28, (7, 14), words=12),
    "equal": Shape(16, (32, 32)),  # padding plays no part
    "short": Shape(16, (16, 32)),
    "gsm8k": Shape(120, (125, 250)),
    "image": Shape(600, (75, 150)),
    "half_tile": Shape(192, (128, 128)),  # all lengths are 64 mod 128, where cuDNN's backward with a mask returns NaN
    "long": Shape(200, (1000, 2000)),
    "session": Shape(100, (40, 80), turns=3, tool=40),
}


def make_model(folder: Path) -> Path:
    """A Llama of 3M random parameters; the vocabulary has the share of them that SmolLM2-135M's has, about a fifth."""
    vocabulary = ["<pad>", "<eos>", *(f"t{i}" for i in range(2, 3456))]
    marks = {"pad_token": "<pad>", "eos_token": "<eos>"}
    tokenizer = tiny.make_tokenizer(vocabulary, None, "{{ messages[0]['content'] }}", **marks)
    small = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6}
    return tiny.make_llama(folder, tokenizer, 4096, {**small, "num_attention_heads": 3, "num_key_value_heads": 1})


def recorded(shape: Shape, groups: int, share: float, vocabulary: int) -> Recording:
    """Rollouts of a shape, a share of their groups mixed."""
    mixed = round(groups * share)
    rewards = [[1.0] * (N // 2) + [0.0] * (N - N // 2)] * mixed + [[0.0] * N] * (groups - mixed)
    if shape.turns == 1:
        return Recording.random(
            rewards, vocabulary=vocabulary, prompt=shape.prompt, response=shape.response, words=shape.words
        )
    generator = torch.Generator().manual_seed(0)

    def ids(count):
        return torch.randint(4, vocabulary, (count,), generator=generator)

    rows = []  # (prompt, response, reward, uid, session, output)
    for g, group in enumerate(rewards):
        first = ids(shape.prompt)
        for session, reward in enumerate(group):
            prompt = first
            for output in range(shape.turns):
                response = ids(int(torch.randint(shape.response[0], shape.response[1] + 1, (), generator=generator)))
                rows.append((prompt, response, reward, f"uid{g:05d}", session, output))
                prompt = torch.cat([prompt, response, ids(shape.tool)])
    return Recording(*(list(column) for column in zip(*rows, strict=True)))


def config_of(contender: Contender, arguments, precision: str, checkpointing: bool):
    actor, rollout, ref = (f"actor_rollout_ref.{role}" for role in ("actor", "rollout", "ref"))
    if arguments.max_tokens:
        passes = [f"{actor}.use_dynamic_bsz=True", f"{actor}.ppo_max_token_len_per_gpu={arguments.max_tokens}"]
    else:
        keys = ("ppo_micro_batch_size_per_gpu", *["log_prob_micro_batch_size_per_gpu"] * 2)
        passes = [f"{role}.{key}={arguments.micro}" for role, key in zip((actor, rollout, ref), keys, strict=True)]
    overrides = [
        *engine_overrides(precision, arguments.attention),
        *contender.overrides,
        *passes,
        f"data.train_batch_size={arguments.groups}",
        "data.max_response_length=2000",
        f"{actor}.ppo_mini_batch_size={arguments.groups}",
        f"{rollout}.n={N}",
        f"actor_rollout_ref.model.path={arguments.model}",
        f"actor_rollout_ref.model.enable_gradient_checkpointing={checkpointing}",
    ]
    return composed(overrides, gpg=contender.ours)


# ---- one step


@contextlib.contextmanager
def a_step(contender: Contender, config, rollouts: Recording, actors: Actors):
    """The contender's step, with the initial weights; veRL's own `gpg` is in the registries for those who run it."""
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.v1 import PPOTrainerSync

    from gpg_verl.training.trainer import GPGTrainerSync

    with contextlib.ExitStack() as stack:
        if not contender.ours:
            adv, loss = core_algos.ADV_ESTIMATOR_REGISTRY, core_algos.POLICY_LOSS_REGISTRY
            stack.enter_context(mock.patch.dict(adv, {"gpg": core_algos.compute_gpg_outcome_advantage}))
            stack.enter_context(mock.patch.dict(loss, {"gpg": core_algos.compute_policy_loss_gpg}))
        actors.call("reset")
        step = recorded_step(GPGTrainerSync if contender.ours else PPOTrainerSync, config, rollouts, actors)
        if contender.ours:
            step()  # its rows are checked, once a run and not a step
            actors.call("reset", (None, True))
        yield step


def measured(step, actors: Actors) -> dict[str, float]:
    """Seconds of a step and of its stages, its peak of memory in GB, and the gradient's norm."""
    before = actors.call("start_memory")[0]
    started = time.perf_counter()
    metrics, timing = step()
    return {
        "seconds": time.perf_counter() - started,
        "passes": timing.get("old_log_prob", 0.0) + timing.get("ref", 0.0),
        "update": timing["update_actor"],
        "optimizer": actors.call("seconds")[0],
        "memory": actors.call("peak_memory")[0] - before,
        "grad_norm": float(metrics["actor/grad_norm"]),
        **{key: metrics.get(f"gpg/{key}", 0) for key in ("tokens_computed", "tokens_shared", "positions_scored")},
    }


def attention(query, key, value, dropout=0.0, is_causal=False, **_) -> int:
    """FLOPs of the CPU's attention kernel, which torch's counter leaves out."""
    batch, heads, queries, d = query
    return 4 * batch * heads * queries * key[2] * d // (2 if is_causal else 1)


def attention_backward(gradient, query, key, value, out, logsumexp, dropout=0.0, is_causal=False, **_) -> int:
    return attention(query, key, value, dropout, is_causal) * 5 // 2


def counted(step) -> int:
    """FLOPs of a step."""

    def of_shapes(count):
        def formula(*args, out_val=None, out_shape=None, **kwargs):
            return count(*args, **kwargs)

        return formula

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    mapping = {kernel: of_shapes(attention), backward: of_shapes(attention_backward)}
    # veRL's goes through a CPU's logits one by one, which counting makes slow and which has no FLOPs that are counted.
    at_once = mock.patch.object(
        torch_functional, "logprobs_from_logits_v2", torch_functional.logprobs_from_logits_naive
    )
    with at_once, FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        step()
    return counter.get_total_flops()


GENERATE = """
import sys, time, json
from vllm import LLM, SamplingParams
model, rows = sys.argv[1], json.load(sys.stdin)
longest = max(len(prompt) + tokens for prompt, tokens in rows)
llm = LLM(model, dtype="float32", enforce_eager=True, max_model_len=longest + 1, max_num_seqs=64,
          kv_cache_memory_bytes=1 << 29, block_size=16, skip_tokenizer_init=True)
ask = [{"prompt_token_ids": prompt} for prompt, _ in rows]
params = [SamplingParams(max_tokens=tokens, ignore_eos=True, detokenize=False) for _, tokens in rows]
llm.generate(ask[:1], params[:1], use_tqdm=False)
started = time.perf_counter()
llm.generate(ask, params, use_tqdm=False)
print("SECONDS", time.perf_counter() - started)
"""


def generation_seconds(model: str, rollouts: Recording) -> float:
    """vLLM's, for as many tokens after the same prompts."""
    rows = [(row["prompts"].tolist(), len(row["responses"])) for row in rollouts.rows.values()]
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, model], input=json.dumps(rows), capture_output=True, text=True, check=False
    )
    line = [line for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    if not line:
        raise SystemExit(f"vLLM did not generate:\n{done.stderr[-2000:]}")
    return float(line[0].split()[1])


# ---- all of them


def compare(shape: str, share: float, configs: dict[Contender, object], arguments, actors: Actors) -> dict:
    """Each contender's figures; the first step of each warms up, and those after it are timed."""
    config = actors.local.engine.module.config
    batches = {
        c: recorded(SHAPES[shape], arguments.groups, 1.0 if c.filtered else share, config.vocab_size) for c in configs
    }
    generation = generation_seconds(arguments.model, next(iter(batches.values()))) if arguments.generation else 0.0
    figures = {c: {"flops": None, "steps": []} for c in configs}
    for turn, c in itertools.product(range(arguments.pairs + 1), configs):
        if turn == 0 and not torch.cuda.is_available():
            with a_step(c, configs[c], batches[c], actors) as step:
                figures[c]["flops"] = counted(step)
        with a_step(c, configs[c], batches[c], actors) as step:
            figures[c]["steps"].append(measured(step, actors))
    for c, own in figures.items():
        first, *timed = own.pop("steps")
        kept = ("memory", "grad_norm", "tokens_computed", "tokens_shared", "positions_scored")
        own |= {key: first[key] for key in kept}
        own |= {key: [step[key] for step in timed] for key in SECONDS}
        own["whole"] = [s + generation / (share if c.filtered else 1.0) for s in own["seconds"]]
    tokens = sum(tag["seq_len"] for tag in next(iter(batches.values())).tags.values())
    found = {"shape": shape, "share": share, "generation": generation, "tokens": tokens}
    return {**found, "contenders": {c.name: own for c, own in figures.items()}}


def floor(figures: dict, module, u: int) -> float:
    """The least part of veRL's gpg that a step can cost."""
    head = module.config.vocab_size * module.config.hidden_size
    body = sum(p.numel() for name, p in module.named_parameters() if "embed_tokens" not in name)
    body -= 0 if module.config.tie_word_embeddings else head
    ours = next(iter(figures["contenders"].values()))
    part = (ours["tokens_computed"] * body + ours["positions_scored"] * head) / (figures["tokens"] * (body + head))
    return u / (1 + u) * part


def table(figures: dict) -> str:
    ours = next(iter(figures["contenders"].values()))
    title = (
        f"{figures['shape']}, {figures['share']:.0%} of the groups mixed, {figures['precision']}, checkpointing "
        f"{figures['checkpointing']}: {ours['tokens_computed']} tokens computed, {ours['tokens_shared']} shared, "
        f"{ours['positions_scored']} scored; floor {figures['floor']:.3f} of veRL gpg; generation "
        f"{figures['generation']:.1f} s"
    )
    lines = {}
    for name, own in figures["contenders"].items():
        line = {"peak GB": f"{own['memory']:.2f}"}
        if own["flops"]:
            line |= {"GFLOP": f"{own['flops'] / 1e9:.1f}", "ours / it": f"{ours['flops'] / own['flops']:.3f}"}
        if own["seconds"]:
            line |= {key: f"{statistics.median(own[key]):.2f} s" for key in SECONDS}
            for key in ("seconds", "whole"):
                ratios = [a / b for a, b in zip(ours[key], own[key], strict=True)]
                spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
                line[f"{key}: ours / it, pairs"] = spread
        lines[name] = line
    return f"\n{title}\n{pd.DataFrame(lines).T.to_string()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument("--model", help="a local model (default: a small Llama shape)")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5], help="shares of mixed groups")
    parser.add_argument("--contenders", nargs="+", choices=names, default=names, help="the first is compared with")
    parser.add_argument("--groups", type=int, default=4, help="prompts of eight responses (default %(default)s)")
    parser.add_argument("--micro", type=int, default=8, help="rows per forward pass (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, help="tokens per forward pass, instead of rows")
    parser.add_argument("--pairs", type=int, default=0, help="timed steps of each contender, in turns (default none)")
    parser.add_argument("--generation", action="store_true", help="vLLM's seconds too, and the whole step")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--attention", default="sdpa", help="of a GPU's bf16 (default %(default)s)")
    parser.add_argument("--checkpointing", nargs="+", choices=["off", "on"], default=["off"])
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    folder = tempfile.TemporaryDirectory()
    arguments.model = arguments.model or str(make_model(Path(folder.name)))
    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 is meant

    found = []
    for precision, checkpointing in itertools.product(arguments.precision, arguments.checkpointing):
        checkpointed = checkpointing == "on"
        configs = {
            c: config_of(c, arguments, precision, checkpointed) for c in CONTENDERS if c.name in arguments.contenders
        }
        with Actors(next(iter(configs.values()))) as actors:
            actors.call("time_optimizer")
            for shape, share in itertools.product(arguments.shapes, arguments.shares):
                figures = compare(shape, share, configs, arguments, actors)
                figures |= {"precision": precision, "checkpointing": checkpointing}
                figures["floor"] = floor(figures, actors.local.engine.module, 4 if checkpointed else 3)
                print(table(figures), flush=True)
                found.append(figures)
                if arguments.json:
                    arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
