"""How often veRL's own `gpg` estimator and ours give the advantages that the paper defines.

    python examples/benchmark/estimator.py --cases 1800

Both are compared with the definition (Â = B/(B−M) · (r − mean), in exact fractions) on random small batches: rewards
0/1, ±1 or anything, groups of 1 to 8, with and without padding rows, in equal parts. What ours costs: driver.py.
"""

import argparse
import random
from fractions import Fraction

import numpy as np
import torch
from verl.trainer.ppo.core_algos import compute_gpg_outcome_advantage

from gpg_verl.algorithm.advantage import gpg_advantage

ESTIMATORS = {"veRL's own estimator": compute_gpg_outcome_advantage, "ours": gpg_advantage}
TOKENS = 5


def defined(scores: list[Fraction], groups: list[int], real: list[bool]) -> list[Fraction]:
    """(rows,) Â of the paper, row by row; 0 for padding rows."""
    of_group = {g: [s for s, h, r in zip(scores, groups, real, strict=True) if h == g and r] for g in groups}
    valid = {g: len(set(rewards)) > 1 for g, rewards in of_group.items()}
    samples = sum(real)
    with_gradient = sum(r and valid[g] for g, r in zip(groups, real, strict=True))
    alpha = Fraction(samples, with_gradient) if with_gradient else Fraction(1)
    return [
        alpha * (s - sum(of_group[g]) / len(of_group[g])) if r and valid[g] else Fraction(0)
        for s, g, r in zip(scores, groups, real, strict=True)
    ]


def agreement(cases: int) -> dict[str, int]:
    """How many of `cases` random batches each estimator gets right, to 1e-5 in every token."""
    rng = random.Random(0)
    right = dict.fromkeys(ESTIMATORS, 0)
    rewards_of = (lambda: rng.choice((0, 1)), lambda: rng.choice((-1, 1)), lambda: Fraction(rng.randrange(-64, 65), 32))
    for case in range(cases):
        draw, padded = rewards_of[case % 3], case // 3 % 2
        groups = [g for g in range(rng.randint(1, 8)) for _ in range(rng.randint(1, 8))]
        real = [True] * len(groups) + [False] * (rng.randint(1, 4) if padded else 0)
        groups += [groups[0]] * (len(real) - len(groups))  # veRL pads with copies of a row, masked
        scores = [Fraction(draw()) for _ in real]
        mask = torch.zeros(len(real), TOKENS, dtype=torch.int64)
        rewards = torch.zeros(len(real), TOKENS)
        for i, r in enumerate(real):
            length = rng.randint(1, TOKENS)
            mask[i, :length] = int(r)
            rewards[i, length - 1] = float(scores[i]) if r else 0.0
        want = torch.tensor([float(a) for a in defined(scores, groups, real)]).unsqueeze(-1) * mask
        index = np.array([str(g) for g in groups], dtype=object)
        for name, estimator in ESTIMATORS.items():
            right[name] += torch.allclose(estimator(rewards, mask, index)[0].float(), want, atol=1e-5)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1800, help="random batches (default %(default)s)")
    arguments = parser.parse_args()
    for name, right in agreement(arguments.cases).items():
        print(f"{name}: as the paper defines it in {right} of {arguments.cases} random batches")


if __name__ == "__main__":
    main()
