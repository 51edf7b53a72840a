"""How long GPG's advantages take: veRL's own estimator against ours, on the CPU as in veRL's driver.

    python examples/benchmark/estimator.py --rows 8192 --tokens 1024 --group 8 --repeat 7

The calls take turns, so that a busy machine slows all of them; each figure is the median of the repeats.
"""

import argparse
import statistics
import time
import uuid

import numpy as np
import torch
from verl.trainer.ppo.core_algos import compute_gpg_outcome_advantage

from gpg_verl.advantage import gpg_advantage, group_statistics, sum_rewards


def batch(rows: int, tokens: int, group: int, mask_dtype: torch.dtype):
    """A batch as veRL has it: 0/1 rewards on the last token, lengths anywhere in 1..tokens, string uids."""
    lengths = torch.randint(1, tokens + 1, (rows,))
    response_mask = (torch.arange(tokens) < lengths.unsqueeze(-1)).to(mask_dtype)
    rewards = torch.zeros(rows, tokens)
    rewards[torch.arange(rows), lengths - 1] = torch.randint(0, 2, (rows,)).float()
    uids = [str(uuid.uuid4()) for _ in range(-(-rows // group))]
    return rewards, response_mask, np.repeat(np.array(uids, dtype=object), group)[:rows]


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--mask", choices=("int64", "bool"), default="int64", help="dtype of response_mask")
    args = parser.parse_args()

    torch.manual_seed(0)
    rewards, mask, index = batch(args.rows, args.tokens, args.group, getattr(torch, args.mask))
    scores, lengths = rewards.sum(-1), mask.sum(-1)

    def reduced():
        scores, magnitudes, _ = sum_rewards(rewards)
        return group_statistics(scores, index, mask.sum(-1), magnitudes=magnitudes)

    calls = {
        "veRL's own estimator": lambda: compute_gpg_outcome_advantage(rewards, mask, index),
        "ours, scores and lengths given": lambda: group_statistics(scores, index, lengths),
        "ours, with reducing the tokens to scores and lengths": reduced,
        "ours, with dense advantages and returns": lambda: gpg_advantage(rewards, mask, index),
        "writing one masked tensor": lambda: scores.unsqueeze(-1) * mask,
    }
    times = {name: [] for name in calls}
    for function in calls.values():
        function()  # warm up
    for _ in range(args.repeat):
        for name, function in calls.items():
            times[name].append(seconds(function))

    median = {name: statistics.median(x) for name, x in times.items()}
    verl, write = median["veRL's own estimator"], median["writing one masked tensor"]
    print(
        f"{args.rows} rows x {args.tokens} tokens, groups of {args.group}, {args.mask} mask, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {args.repeat}\n"
    )
    print(f"{'call':54}{'seconds':>9}{'veRL / call':>13}{'call / write':>14}")
    for name, x in median.items():
        print(f"{name:54}{x:9.4f}{verl / x:12.1f}x{x / write:13.2f}x")


if __name__ == "__main__":
    main()
