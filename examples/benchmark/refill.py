"""How long a step takes to fill under β_th, and what it generates for it: a simulation over gpg_verl's own refill code.

    python examples/benchmark/refill.py                      # the whole grid, some minutes on 2 cores
    python examples/benchmark/refill.py --prompts 512 --shares 0.3 --thresholds 0.6 --seeds 20

Contenders, on the same draws:
    gpg_verl   `gpg_verl.algorithm.refill.Refill`, the code that a run uses, asked at the polls of
               `gpg_verl.guards.liveness.poll_seconds`
    rounds     whole batches one after the other until the share is reached, at most 20 (what the paper's code does)
    DAPO       veRL 0.9.1's sync ReplayBuffer with filter_groups: a step needs S valid groups; k evicted groups give 2k
               credits, at most a batch is in flight, and what is in flight is drained. Only where β_th is 1.

A group is the 8 responses to a prompt and finishes with the slowest. Response lengths are log-normal (median 600
tokens, σ = 1), cut at 8,192. Longer groups are more often valid: a group is valid where ρ·z + √(1−ρ²)·noise exceeds a
threshold that gives the true share, z being its mean log length in standard deviations and ρ = 0.5.

A token takes 20 ms, whatever runs beside it. (A service whose sequences share a machine was simulated once: README.md.)

"faster" is the contender's time over ours on the same draws, the geometric mean over seeds with its 95 % interval;
"slower" where we are so beyond it. "generated" counts prompts dispatched per prompt used, "valid" is the share
of valid groups trained on: rounds end with more than β_th asks for, as they come in whole batches. Steps after the
first know the share that earlier steps saw. Everyone looks at the rollout at the same polls.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import statistics
from dataclasses import dataclass

import numpy as np

from gpg_verl.algorithm.refill import GroupStatus, Refill
from gpg_verl.guards.liveness import poll_seconds

RESPONSES = 8
MEDIAN_TOKENS, SIGMA, LONGEST = 600, 1.0, 8192
VALID_WITH_LENGTH = 0.5
SECONDS_PER_TOKEN = 0.020
MAX_BATCHES = 20


class Groups:
    """An endless stream of groups: `lengths[i]`, the tokens of group i's responses, and `valid[i]`."""

    def __init__(self, seed: int, share: float, chunk: int):
        self.random = np.random.default_rng(seed)
        self.threshold = statistics.NormalDist().inv_cdf(1 - share)
        self.chunk = chunk
        self.lengths = np.empty((0, RESPONSES))
        self.valid: list[bool] = []

    def reach(self, n: int) -> None:
        while len(self.valid) < n:
            normal = self.random.standard_normal((self.chunk, RESPONSES))
            z = normal.mean(1) * math.sqrt(RESPONSES)
            noise = self.random.standard_normal(self.chunk)
            ability = VALID_WITH_LENGTH * z + math.sqrt(1 - VALID_WITH_LENGTH**2) * noise
            self.valid += (ability > self.threshold).tolist()
            tokens = np.minimum(MEDIAN_TOKENS * np.exp(SIGMA * normal), LONGEST)
            self.lengths = np.concatenate([self.lengths, tokens])


class Latency:
    """Every sequence runs at once, at one speed."""

    def __init__(self, groups: Groups):
        self.groups, self.finishing = groups, []

    def dispatch(self, now: float, ids: range) -> None:
        self.groups.reach(ids.stop)
        finish = now + self.groups.lengths[ids.start : ids.stop].max(1, initial=0) * SECONDS_PER_TOKEN
        for entry in zip(finish.tolist(), ids, strict=True):
            heapq.heappush(self.finishing, entry)

    def advance(self, until: float) -> tuple[float, list[int]]:
        """(`until`, or the time of the last finish where that is infinite; groups finished by then)."""
        done, now = [], 0.0
        while self.finishing and self.finishing[0][0] <= until:
            now, i = heapq.heappop(self.finishing)
            done.append(i)
        return (until if until < math.inf else now), done


@dataclass(frozen=True)
class Step:
    """What a contender reports: seconds, groups dispatched, groups trained on."""

    seconds: float
    dispatched: int
    selected: list[int]


def ours(service, groups: Groups, refill: Refill, *, start_at_once: bool = False) -> Step:
    dispatched, now = 0, 0.0
    finished: list[int] = []

    def dispatch(n: int) -> None:
        nonlocal dispatched
        ids = range(dispatched, dispatched + n)
        service.dispatch(now, ids)
        refill.dispatch(ids)
        dispatched += n

    dispatch(refill.batch_size)
    while (cut := refill.select()) is None:
        if start_at_once and (picked := soonest(finished, groups, refill)):
            return Step(now, dispatched, picked)
        dispatch(refill.num_prompts_to_request())
        now, done = service.advance(now + poll_seconds(now))
        finished += done
        for i in done:
            refill.judge(i, GroupStatus.VALID if groups.valid[i] else GroupStatus.ZERO_VARIANCE)
    refill.close(cut)
    refill.remove(cut.rest)
    return Step(now, dispatched, cut.selected)


def soonest(finished: list[int], groups: Groups, refill: Refill) -> list[int] | None:
    """The biased rule: the first groups to finish, once they fill the step."""
    valid = [i for i in finished if groups.valid[i]]
    if len(finished) < refill.batch_size or len(valid) < refill.valid_needed:
        return None
    return (valid + [i for i in finished if not groups.valid[i]])[: refill.batch_size]


def rounds(service, groups: Groups, batch_size: int, valid_needed: int) -> Step:
    dispatched, now = 0, 0.0
    while dispatched < MAX_BATCHES * batch_size and sum(groups.valid[:dispatched]) < valid_needed:
        service.dispatch(now, range(dispatched, dispatched + batch_size))
        dispatched += batch_size
        finish, _ = service.advance(math.inf)
        while now < finish:  # everyone looks at the polls only
            now += poll_seconds(now)
    order = sorted(range(dispatched), key=lambda i: not groups.valid[i])
    return Step(now, dispatched, order[:batch_size])


def dapo(service, groups: Groups, batch_size: int) -> Step:
    dispatched = in_flight = credit = 0
    now = 0.0
    usable: list[int] = []
    ask = batch_size
    while True:
        if ask:
            service.dispatch(now, range(dispatched, dispatched + ask))
            dispatched, in_flight = dispatched + ask, in_flight + ask
        now, done = service.advance(now + poll_seconds(now))
        in_flight -= len(done)
        usable += [i for i in done if groups.valid[i]]
        credit += 2 * sum(not groups.valid[i] for i in done)
        if len(usable) >= batch_size:
            credit = 0
            if not in_flight:
                return Step(now, dispatched, usable[:batch_size])
        ask = min(credit, batch_size - in_flight)
        credit -= ask


def run(share: float, beta_th: float, batch_size: int, steps: int, seed: int) -> list[dict[str, tuple]]:
    """Per step, (seconds, prompts generated per prompt used, valid share trained on) of each contender."""
    refill = Refill(batch_size, beta_th, MAX_BATCHES)
    result = []
    for step in range(steps):
        groups = Groups(hash((seed, step)) % 2**32, share, batch_size)
        found = {
            "gpg_verl": ours(Latency(groups), groups, refill),
            "rounds": rounds(Latency(groups), groups, batch_size, refill.valid_needed),
        }
        if beta_th == 1:
            found["DAPO"] = dapo(Latency(groups), groups, batch_size)
        result.append(
            {
                name: (x.seconds, x.dispatched / batch_size, sum(groups.valid[i] for i in x.selected) / batch_size)
                for name, x in found.items()
            }
        )
    return result


def faster(seeds: list[dict[str, tuple]], name: str) -> str:
    """The contender's time over ours: geometric mean over seeds and its 95 % interval."""
    logs = np.log([seed[name][0] / seed["gpg_verl"][0] for seed in seeds])
    half = 1.96 * logs.std(ddof=1) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    mean, low, high = np.exp(logs.mean() + np.array((0, -half, half)))
    return f"{mean:.2f} ({low:.2f}–{high:.2f}{', slower' if high < 1 else ''})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    parser.add_argument("--thresholds", nargs="+", type=float, default=[0.4, 0.6, 1.0])
    parser.add_argument("--prompts", nargs="+", type=int, default=[64, 512], help="S, the prompts of a step")
    parser.add_argument("--steps", type=int, default=2, help="steps in a row; the second and later are warm")
    parser.add_argument("--seeds", type=int, default=100)
    args = parser.parse_args()
    for beta_th, size, share in itertools.product(args.thresholds, args.prompts, args.shares):
        seeds = [run(share, beta_th, size, args.steps, seed) for seed in range(args.seeds)]
        for step, of_step in enumerate(zip(*seeds, strict=True), start=1):
            print(f"β_th {beta_th:g}, {size} prompts, true share {share:g}, step {step}")
            for name in of_step[0]:
                generated, valid = (np.mean([seed[name][figure] for seed in of_step]) for figure in (1, 2))
                print(
                    f"    {name:10} generated {generated:.2f}, valid {valid:.2f}, we are faster {faster(of_step, name)}"
                )


if __name__ == "__main__":
    main()
