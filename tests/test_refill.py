"""β_th's policy: where a step ends and what it asks for, as tables, properties and a comparison with rounds."""

from __future__ import annotations

import importlib.util
import itertools
import random
import sys
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_verl.algorithm.refill import GroupStatus, Refill

LETTER = {"v": GroupStatus.VALID, "f": GroupStatus.ZERO_VARIANCE, "e": GroupStatus.EMPTY}


def fed(verdicts: str, batch_size: int, beta_th: float, max_batches: int = 20) -> Refill:
    """A policy after as many dispatches as letters, judged by them; a dot is still in flight."""
    refill = Refill(batch_size, beta_th, max_batches)
    refill.dispatch(range(len(verdicts)))
    for i, letter in enumerate(verdicts):
        if letter != ".":
            refill.judge(i, LETTER[letter])
    return refill


def reference(verdicts: str, batch_size: int, beta_th: float, bound: int) -> tuple[int, list[int]] | None:
    """(length of the prefix, groups selected), by the definition."""
    for length in range(batch_size, min(len(verdicts), bound) + 1):
        prefix = verdicts[:length]
        enough = prefix.count("v") * 10 >= round(beta_th * 10) * batch_size  # shares in whole tenths: no rounding
        if "." in prefix:
            return None
        if (enough and length - prefix.count("e") >= batch_size) or length == bound:
            of = {letter: [i for i in range(length) if prefix[i] == letter] for letter in "vf"}
            return length, (of["v"] + of["f"])[:batch_size]
    return None


@pytest.mark.parametrize(
    ("beta_th", "batch_size", "valid"),
    [(0.6, 5, 3), (0.1, 10, 1), (0.7, 10, 7), (0.61, 5, 4), (1, 64, 64), (1e-3, 4, 1)],
)
def test_valid_groups_needed(beta_th, batch_size, valid):
    assert Refill(batch_size, beta_th).valid_needed == valid


@pytest.mark.parametrize(
    ("verdicts", "selected", "unused", "rest"),
    [
        ("vvvff", [0, 1, 2, 3, 4], [], []),  # met on the boundary
        ("vvvvv", [0, 1, 2, 3, 4], [], []),
        ("vvffff", None, None, None),  # one valid group short
        ("vvfffv", [0, 1, 5, 2, 3], [4], []),  # valid groups first, then the others up to the batch size
        ("vvvffvvv", [0, 1, 2, 3, 4], [], [5, 6, 7]),  # what comes after the prefix stays out, judged or not
        ("vvvff...", [0, 1, 2, 3, 4], [], [5, 6, 7]),
        ("v.vvfvvvvv", None, None, None),  # nothing while a group of the prefix is unjudged
        ("vvevf", None, None, None),  # a group without rows cannot be used, and is replaced
        ("vvevff", [0, 1, 3, 4, 5], [2], []),
        ("ffffffffff", [0, 1, 2, 3, 4], [5, 6, 7, 8, 9], []),  # the bound, here two batches: what there is
        ("fffvfffffv", [3, 9, 0, 1, 2], [4, 5, 6, 7, 8], []),
        ("eeeeeeeefe", [8], [0, 1, 2, 3, 4, 5, 6, 7, 9], []),
    ],
)
def test_select(verdicts, selected, unused, rest):
    step = fed(verdicts, 5, 0.6, max_batches=2).select()
    if selected is None:
        assert step is None
        return
    assert (step.selected, step.unused, step.rest) == (selected, unused, rest)
    assert step.judged == len(verdicts) - len(rest)
    assert step.valid == verdicts[: step.judged].count("v")
    assert step.surplus_valid == verdicts[step.judged :].count("v")
    assert step.bound_reached == (step.valid < 3)


@pytest.mark.parametrize(
    ("verdicts", "asked"),
    [
        ("", 100),  # a plain batch will do until groups say otherwise
        ("." * 100, 0),
        ("v" * 20 + "." * 80, 0),
        ("f" * 50 + "." * 50, 133),  # p̂ = 28/85 predicts 60 valid ones from 183 in flight
        ("f" * 50 + "." * 182, 1),
        ("f" * 50 + "." * 183, 0),
        ("f" * 100, 290),
        ("f" * 400, 600),  # the bound
        ("v" * 60 + "e" * 30 + "." * 10, 30),  # valid ones enough, usable ones missing
        ("v" * 60 + "f" * 20 + "e" * 20, 20),  # and those of one reward are usable
    ],
)
def test_num_prompts_to_request(verdicts, asked):
    assert fed(verdicts, 100, 0.6, max_batches=10).num_prompts_to_request() == asked


def test_a_step_remembers_the_share_of_earlier_ones():
    refill = fed("vf" * 100, 100, 1.0)
    step = refill.select()
    refill.close(step)
    refill.remove(step.rest)
    assert refill.order == ()
    assert refill.share() == pytest.approx((0.5 * 35 + 100) / (0.5 * 35 + 199))
    assert refill.num_prompts_to_request() > 170  # at the start of the next step, before anything is judged
    restored = Refill(100, 1.0)
    restored.restore(refill.state())
    assert restored.num_prompts_to_request() == refill.num_prompts_to_request()


# --- whole steps, with groups that finish in any order

streams = st.lists(st.sampled_from("vvffe"), min_size=200, max_size=200).map("".join)
tenths = st.integers(1, 10).map(lambda n: n / 10)


def play(refill: Refill, prompts: deque, verdict_of, rng: random.Random, patience: float):
    """Dispatches what is asked for and finishes groups in random order until the step can be selected."""
    dispatched = []

    def dispatch(n):
        uids = [prompts.popleft() for _ in range(n)]
        refill.dispatch(uids)
        dispatched.extend(uids)

    dispatch(refill.batch_size)
    while (step := refill.select()) is None:
        in_flight = [uid for uid in refill.order if not refill.is_judged(uid)]
        if not in_flight or rng.random() > patience:
            asked = refill.num_prompts_to_request()
            assert asked or in_flight, "the step would wait for ever"
            dispatch(asked)
        else:
            uid = rng.choice(in_flight)
            refill.judge(uid, LETTER[verdict_of(uid)])
    return step, dispatched


@settings(max_examples=60, deadline=None)
@given(streams, st.integers(2, 8), tenths, st.integers(1, 6), st.randoms(use_true_random=False), st.floats(0, 0.9))
def test_what_is_selected_does_not_depend_on_when_groups_finish(stream, size, beta_th, batches, rng, patience):
    refill = Refill(size, beta_th, batches)
    step, dispatched = play(refill, deque(range(200)), stream.__getitem__, rng, patience)
    assert (step.judged, step.selected) == reference(stream, size, beta_th, batches * size)
    assert len(dispatched) <= batches * size
    assert sorted([*step.selected, *step.unused, *step.rest]) == dispatched


@settings(max_examples=40, deadline=None)
@given(streams, st.integers(2, 8), tenths, st.randoms(use_true_random=False), st.floats(0, 0.9))
def test_no_prompt_is_lost_or_used_twice_by_handing_back(stream, size, beta_th, rng, patience):
    refill = Refill(size, beta_th, max_batches=4)
    prompts = deque((i, 0) for i in range(2000))
    used_up = []
    for _ in range(5):
        step, dispatched = play(refill, prompts, lambda uid: stream[(uid[0] * 7 + uid[1]) % 200], rng, patience)
        refill.close(step)
        refill.remove(step.rest)
        prompts.extendleft((prompt, tries + 1) for prompt, tries in reversed(step.rest))  # fresh responses
        used_up += [prompt for prompt, _ in dispatched[: step.judged]]
    assert used_up == list(range(len(used_up)))
    assert refill.order == ()


@settings(max_examples=40, deadline=None)
@given(streams, st.integers(2, 8), tenths, st.randoms(use_true_random=False))
def test_what_stays_for_the_next_step_keeps_its_place(stream, size, beta_th, rng):
    """The asynchronous modes: groups after the prefix are the next step's first."""
    refill = Refill(size, beta_th, max_batches=4)
    prompts, start = deque(range(200)), 0
    for _ in range(3):
        step, _ = play(refill, prompts, stream.__getitem__, rng, 0.5)
        length, selected = reference(stream[start:], size, beta_th, 4 * size)
        assert step.selected == [start + i for i in selected]
        refill.close(step)
        start += length


def test_forgotten_groups_do_not_count():
    refill = fed("vf.vv.", 3, 1.0)
    refill.remove([2, 5, "unknown"])
    assert refill.order == (0, 1, 3, 4)
    assert refill.select().selected == [0, 3, 4]


# --- the distribution of what is trained on


@pytest.fixture(scope="module")
def simulation():
    file = Path(__file__).parents[1] / "examples/benchmark/refill.py"
    spec = importlib.util.spec_from_file_location("refill_simulation", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look it up
    spec.loader.exec_module(module)
    return module


def distance(a: list[float], b: list[float]) -> float:
    """The two-sample Kolmogorov-Smirnov statistic over its 1 % critical value."""
    a, b, points = np.sort(a), np.sort(b), np.sort([*a, *b])
    gap = np.abs(np.searchsorted(a, points, "right") / len(a) - np.searchsorted(b, points, "right") / len(b)).max()
    return float(gap / (1.628 * np.sqrt(1 / len(a) + 1 / len(b))))


def test_lengths_trained_on_are_those_of_rounds_and_would_not_be_by_starting_at_once(simulation):
    """On different draws, so that the samples are independent; a group's longest response says when it finished."""
    size, share, beta_th, seeds = 256, 0.3, 0.6, itertools.count()
    longest: dict[str, list[float]] = {"rounds": [], "ours": [], "at once": []}
    for name, _ in itertools.product(longest, range(120)):
        groups = simulation.Groups(next(seeds), share, size)
        service, refill = simulation.Latency(groups), Refill(size, beta_th)
        if name == "rounds":
            step = simulation.rounds(service, groups, size, refill.valid_needed)
        else:
            step = simulation.ours(service, groups, refill, start_at_once=name == "at once")
        longest[name] += [max(groups.lengths[i]) for i in step.selected if groups.valid[i]]
    assert distance(longest["ours"], longest["rounds"]) < 1
    assert distance(longest["at once"], longest["rounds"]) > 1.5
