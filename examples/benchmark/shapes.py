"""What an update costs by the shape of its rows: FLOPs counted, memory, seconds in pairs, against what veRL ships.

    python examples/benchmark/shapes.py                      # a small Llama shape, FLOPs of all shapes: a few minutes
    python examples/benchmark/shapes.py --shapes gsm8k --pairs 5 --model DIR

The trainers and the engine are those of step.py, all on the same recorded rollouts, eight responses a prompt. FLOPs are
torch's count of what really ran (matrix products and attention, causal attention at half), forward and backward, of
the old-log-prob and reference passes too. Memory is the process's at its peak, above what it had before the step. The
floor, in parts of veRL's gpg, is

    u/(1+u) · (computed · body + scored · head)/(all · (body + head))

with u = 3 the cost of an update in forward passes, `computed` the tokens of mixed groups that no other row has,
`scored` the positions that score one, body and head the parameters of the layers and of the vocabulary.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

os.environ["VERL_PLATFORM"] = "cpu"

import torch
import verl  # noqa: F401
from actors import Actors, Recording, recorded_step
from rich.console import Console
from rich.table import Table
from step import CONTENDERS, Contender, N, config_of, make_model, rewards, verls_own_gpg
from torch.utils.flop_counter import FlopCounterMode
from verl.utils import torch_functional

ROW_BY_ROW = Contender("row by row", ("algorithm.adv_estimator=gpg", "+algorithm.gpg.share_prefixes=False"), ours=True)
COMPARED = (CONTENDERS[0], ROW_BY_ROW, *CONTENDERS[1:4])


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
    "short": Shape(16, (16, 32)),
    "gsm8k": Shape(120, (125, 250)),
    "image": Shape(600, (75, 150)),
    "long": Shape(200, (1000, 2000)),
    "session": Shape(100, (40, 80), turns=3, tool=40),
}


def recorded(shape: Shape, groups: int, share: float, vocabulary: int) -> Recording:
    """Rollouts of a shape, a share of their groups mixed."""
    scores = rewards(groups, share)
    if shape.turns == 1:
        return Recording.random(
            scores, vocabulary=vocabulary, prompt=shape.prompt, response=shape.response, words=shape.words
        )
    generator = torch.Generator().manual_seed(0)

    def ids(count):
        return torch.randint(4, vocabulary, (count,), generator=generator)

    rows = []  # (prompt, response, reward, uid, session, output)
    for g, group in enumerate(scores):
        first = ids(shape.prompt)
        for session, reward in enumerate(group):
            prompt = first
            for output in range(shape.turns):
                response = ids(int(torch.randint(shape.response[0], shape.response[1] + 1, (), generator=generator)))
                rows.append((prompt, response, reward, f"uid{g:05d}", session, output))
                prompt = torch.cat([prompt, response, ids(shape.tool)])
    return Recording(*(list(column) for column in zip(*rows, strict=True)))


def attention(query, key, value, dropout=0.0, is_causal=False, **_) -> int:
    """FLOPs of the CPU's attention kernel, which torch's counter leaves out."""
    batch, heads, queries, d = query
    return 4 * batch * heads * queries * key[2] * d // (2 if is_causal else 1)


def attention_backward(gradient, query, key, value, out, logsumexp, dropout=0.0, is_causal=False, **_) -> int:
    return attention(query, key, value, dropout, is_causal) * 5 // 2


def counted(step) -> tuple[float, dict]:
    """FLOPs of a step, and its metrics."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def of_shapes(count):
        def formula(*args, out_val=None, out_shape=None, **kwargs):
            return count(*args, **kwargs)

        return formula

    mapping = {kernel: of_shapes(attention), backward: of_shapes(attention_backward)}
    # veRL's goes through a CPU's logits one by one, which counting makes slow and which has no FLOPs that are counted.
    at_once = mock.patch.object(
        torch_functional, "logprobs_from_logits_v2", torch_functional.logprobs_from_logits_naive
    )
    with at_once, FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        metrics, _ = step()
    return counter.get_total_flops(), metrics


def make_small_model(folder: Path) -> Path:
    """A Llama of 3M parameters of which the vocabulary has the share that SmolLM2-135M's has, about a fifth."""
    from transformers import LlamaConfig, LlamaForCausalLM

    make_model(folder)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(folder)
    small = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "vocab_size": 3456}
    config.update({**small, "num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 4096})
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def step_of(contender: Contender, config, rollouts, actors):
    from verl.trainer.ppo.v1 import PPOTrainerSync

    from gpg_verl.training.trainer import GPGTrainerSync

    actors.call("reset")
    step = recorded_step(GPGTrainerSync if contender.ours else PPOTrainerSync, config, rollouts, actors)
    if contender.ours:
        step.trainer._passes()  # checks the engine, once a run and not a step
    return step


@contextlib.contextmanager
def in_verls_place(contender: Contender):
    """veRL's own `gpg` in the registries, for those who run it."""
    with contextlib.ExitStack() as stack:
        for patch in verls_own_gpg() if contender.verls_gpg else ():
            stack.enter_context(patch)
        yield


def floor(metrics: dict, rows_tokens: int, body: int, head: int) -> float:
    """Of veRL's gpg; `metrics`: ours."""
    ours = metrics["gpg/tokens_computed"] * body + metrics["gpg/positions_scored"] * head
    return 3 / 4 * ours / (rows_tokens * (body + head))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a local model (default: a small Llama shape)")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5], help="shares of mixed groups")
    parser.add_argument("--groups", type=int, default=4, help="prompts of eight responses (default %(default)s)")
    parser.add_argument("--micro", type=int, default=8, help="rows per forward pass (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=0, help="timed steps of each contender, in turns (default none)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    folder = tempfile.TemporaryDirectory()
    model = arguments.model or str(make_small_model(Path(folder.name)))

    console, figures = Console(width=120), []
    setting = SimpleNamespace(rows=arguments.groups * N, tokens=2000, model=model, micro=arguments.micro)
    configs = {contender: config_of(contender, setting, checkpointing=False) for contender in COMPARED}
    with Actors(configs[COMPARED[0]]) as actors:
        module = actors.local.engine.module
        vocabulary = module.config.vocab_size
        head = vocabulary * module.config.hidden_size
        body = sum(p.numel() for name, p in module.named_parameters() if "embed_tokens" not in name)
        body -= 0 if module.config.tie_word_embeddings else head
        for name in arguments.shapes:
            for share in arguments.shares:
                rollouts = recorded(SHAPES[name], arguments.groups, share, vocabulary)
                flops, memory, seconds, ours = {}, {}, {c: [] for c in COMPARED}, {}
                for contender in COMPARED:
                    with in_verls_place(contender):
                        step = step_of(contender, configs[contender], rollouts, actors)
                        flops[contender], metrics = counted(step)
                        step = step_of(contender, configs[contender], rollouts, actors)
                        before = actors.call("start_memory")[0]
                        step()
                        memory[contender] = actors.call("peak_memory")[0] - before
                    ours = ours or metrics
                for _ in range(arguments.pairs):
                    for contender in COMPARED:
                        with in_verls_place(contender):
                            step = step_of(contender, configs[contender], rollouts, actors)
                            started = time.perf_counter()
                            step()
                            seconds[contender].append(time.perf_counter() - started)
                tokens = sum(tag["seq_len"] for tag in rollouts.tags.values())
                least = floor(ours, tokens, body, head)
                console.print(table(name, share, flops, memory, seconds, least, ours))
                figures.append(
                    {
                        "shape": name,
                        "share": share,
                        "floor": least,
                        "flops": {c.name: flops[c] for c in COMPARED},
                        "memory": {c.name: memory[c] for c in COMPARED},
                        "seconds": {c.name: seconds[c] for c in COMPARED},
                        **{key: ours[f"gpg/{key}"] for key in ("tokens_computed", "tokens_shared", "positions_scored")},
                    }
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def table(name: str, share: float, flops: dict, memory: dict, seconds: dict, least: float, ours: dict) -> Table:
    first = COMPARED[0]
    result = Table(
        title=f"{name}, {share:.0%} of the groups mixed: {ours['gpg/tokens_computed']} tokens computed, "
        f"{ours['gpg/tokens_shared']} shared, {ours['gpg/positions_scored']} scored; floor {least:.3f} of veRL gpg"
    )
    for column in ("", "GFLOP", "ours / it", "peak GB", "ours / it", "seconds", "ours / it, pairs"):
        result.add_column(column, justify="left" if not column else "right")
    for contender in COMPARED:
        ratios = [a / b for a, b in zip(seconds[first], seconds[contender], strict=True)]
        timed = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})" if ratios else "-"
        result.add_row(
            contender.name,
            f"{flops[contender] / 1e9:.1f}",
            f"{flops[first] / flops[contender]:.3f}",
            f"{memory[contender]:.2f}",
            f"{memory[first] / memory[contender]:.2f}",
            f"{statistics.median(seconds[contender]):.2f}" if ratios else "-",
            timed,
        )
    return result


if __name__ == "__main__":
    main()
