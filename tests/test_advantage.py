"""GPG's advantages: the exact cases as tables, then random batches against the paper's definition."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_verl.algorithm.advantage import ALPHAS, F_NORMS, Sessions, gpg_advantage, group_statistics, session_statistics

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def statistics(groups, lengths=None, **options):
    """`group_statistics` of a list of groups, each a list of rewards; 3 tokens per response unless given."""
    scores = torch.tensor([r for group in groups for r in group], dtype=torch.float32)
    index = [f"uid-{g}" for g, group in enumerate(groups) for _ in group]
    lengths = [3] * len(scores) if lengths is None else lengths
    return group_statistics(scores, index, torch.tensor(lengths, dtype=torch.int64), **options)


def close(actual: torch.Tensor, expected) -> bool:
    return torch.allclose(actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-5)


# --- The exact cases ---------------------------------------------------------------------------------------

half = math.sqrt(0.5)  # sample standard deviation of (0, 1)


@pytest.mark.parametrize(
    ("groups", "f_norm", "alpha", "expected", "M", "α"),
    [
        # rewards per group              F_norm  α         Â, row by row                     M  α
        ([[1, 0], [1, 0]],               "1",   "none",   [0.5, -0.5, 0.5, -0.5],            0, 1),
        ([[1, 0], [1, 0]],               "1",   "sample", [0.5, -0.5, 0.5, -0.5],            0, 1),
        # all right, all wrong: no advantage, and α gives the others their weight
        ([[1, 0], [1, 1]],               "1",   "none",   [0.5, -0.5, 0, 0],                 2, 1),
        ([[1, 0], [1, 1]],               "1",   "sample", [1, -1, 0, 0],                     2, 2),
        ([[0, 0, 0], [1, 0, 0]],         "1",   "sample", [0, 0, 0, 4 / 3, -2 / 3, -2 / 3],  3, 2),
        ([[1, 1], [0, 0], [1, 0]],       "1",   "sample", [0, 0, 0, 0, 1.5, -1.5],           4, 3),
        # a group of one says nothing about its prompt, whatever its reward
        ([[1], [1, 0]],                  "1",   "sample", [0, 0.75, -0.75],                  1, 1.5),
        ([[0], [1, 0]],                  "std", "sample", [0, 0.75 / half, -0.75 / half],    1, 1.5),
        # rewards other than 0 and 1
        ([[1, -1], [-1, -1]],            "1",   "sample", [2, -2, 0, 0],                     2, 2),
        ([[1, -1], [1, -1]],             "1",   "sample", [1, -1, 1, -1],                    0, 1),
        ([[-3, -1], [-2, -2]],           "1",   "none",   [-1, 1, 0, 0],                     2, 1),
        ([[2, 0.5], [0.5, 0.5]],         "1",   "sample", [1.5, -1.5, 0, 0],                 2, 2),
        # F_norm = std divides by the sample standard deviation (N − 1), in valid groups only
        ([[1, 0], [1, 1]],               "std", "none",   [half, -half, 0, 0],               2, 1),
        ([[3, 0, 0]],                    "std", "none",   [2 / 3**0.5, -1 / 3**0.5, -1 / 3**0.5], 0, 1),
        # groups of different sizes
        ([[1, 0, 0, 0], [1, 0], [0, 0]], "1",   "sample", [1, *[-1 / 3] * 3, 2 / 3, -2 / 3, 0, 0], 2, 4 / 3),
        # no valid group, no sample at all: zeros, α = 1, no NaN
        ([[1, 1], [0, 0], [1]],          "1",   "sample", [0] * 5,                           5, 1),
        ([[1, 1], [0, 0], [1]],          "std", "token",  [0] * 5,                           5, 1),
        ([],                             "std", "sample", [],                                0, 1),
    ],
)  # fmt: skip
def test_cases(groups, f_norm, alpha, expected, M, α):
    seen = statistics(groups, f_norm=f_norm, alpha=alpha)
    assert close(seen.advantages, expected)
    assert (len(expected), M) == (seen.B, seen.M)
    assert seen.alpha == pytest.approx(α)
    assert seen.valid.tolist() == [x != 0 for x in expected]


@pytest.mark.parametrize(
    ("alpha", "lengths", "α"),
    [
        ("sample", [10, 10, 1, 1, 1, 1], 3),
        ("token", [10, 10, 1, 1, 1, 1], 24 / 20),
        ("token", [1, 1, 10, 10, 10, 10], 42 / 2),
        ("token", [7, 7, 7, 7, 7, 7], 3),  # equal lengths: as many tokens as samples
        ("none", [10, 10, 1, 1, 1, 1], 1),
    ],
)
def test_alpha_counts_samples_or_tokens(alpha, lengths, α):
    seen = statistics([[1, 0], [1, 1], [0, 0]], lengths, alpha=alpha)
    assert seen.alpha == pytest.approx(α)
    assert close(seen.advantages, [α / 2, -α / 2, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("groups", "lengths", "expected"),
    [
        # padding shares the uid of a valid group: not in its mean, not in B
        ([[1, 0, 1]], [3, 3, 0], [0.5, -0.5, 0]),
        ([[1, 0, 99]], [3, 3, 0], [0.5, -0.5, 0]),
        # it cannot make a group valid, nor a group of two out of one
        ([[1, 1, 0]], [3, 3, 0], [0, 0, 0]),
        ([[1, 0]], [3, 0], [0, 0]),
        # neither B nor M: α is 1 here
        ([[1, 0], [0, 0]], [3, 3, 0, 0], [0.5, -0.5, 0, 0]),
        # nor does a bad number in it do any harm
        ([[1, 0, math.nan], [math.inf]], [3, 3, 0, 0], [0.5, -0.5, 0, 0]),
    ],
)
def test_padding_rows_count_nowhere(groups, lengths, expected):
    seen = statistics(groups, lengths)
    assert close(seen.advantages, expected)
    assert seen.counted.tolist() == [n > 0 for n in lengths]
    samples, with_advantage = sum(n > 0 for n in lengths), sum(x != 0 for x in expected)
    assert (samples, samples - with_advantage) == (seen.B, seen.M)


def test_counts():
    groups = [[1, 0], [1, 1], [2, 2, 2], [0, 0], [-1, -1], [5], [0], [0, 0]]
    lengths = [3] * (sum(map(len, groups)) - 2) + [0, 0]  # the last group is padding
    seen = statistics(groups, lengths)
    assert (seen.groups, seen.all_right, seen.all_wrong, seen.singletons) == (7, 2, 2, 2)
    assert (seen.B, seen.M) == (13, 11)
    assert seen.valid_share == 2 / 13
    assert statistics([[1, 0]], [0, 0]).valid_share == 0.0


@pytest.mark.parametrize(
    ("dtype", "token_rewards", "equal"),
    [
        (torch.float32, ([0.1] * 7, [0.7]), True),
        (torch.float64, ([0.1] * 7, [0.7]), True),
        (torch.float32, ([0.001] * 1000, [1.0]), True),
        (torch.float64, ([0.001] * 1000, [1.0]), True),
        (torch.float32, ([0.1, 0.2], [0.3]), True),
        (torch.float32, ([1000.0, -999.9], [0.1]), True),  # rounding grows with what was added up
        (torch.float32, ([1e6, 0.1, -1e6, -0.1], [0.0]), True),
        (torch.float32, ([1.0], [1.0 + 1e-4]), False),
        (torch.float32, ([1.0], [1.0 + 1e-6]), False),
        (torch.float64, ([1.0], [1.0 + 1e-12]), False),
        (torch.float32, ([1e-20], [2e-20]), False),  # small rewards are rewards
        (torch.float32, ([0.0], [1e-30]), False),
        (torch.float32, ([0.7], [0.1] * 6), False),
    ],
)
def test_rounding_is_no_reward_spread(dtype, token_rewards, equal):
    T = max(map(len, token_rewards))
    rewards = torch.tensor([[0.0] * (T - len(r)) + r for r in token_rewards], dtype=dtype)
    advantages, _, seen = gpg_advantage(rewards, torch.ones(2, T, dtype=torch.int64), ["a", "a"])
    assert (seen.M == 2) == equal
    assert (advantages == 0).all() == equal


def test_a_large_group_next_door_does_not_hide_a_small_spread():
    seen = statistics([[1e-3, 0], [1e6, 0]])
    assert seen.valid.all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_rewards_name_their_rows(bad):
    rewards = torch.zeros(9, 4)
    rewards[torch.tensor([2, 3, 4, 5, 6, 8]), 1] = bad
    mask = torch.ones(9, 4)
    with pytest.raises(ValueError, match=r"6 of 9 rows .*\(rows 2, 3, 4, 5, 6, \.\.\.\).*reward function"):
        gpg_advantage(rewards, mask, list("aaabbbccc"))
    mask[2:] = 0  # padding
    advantages, returns, _ = gpg_advantage(rewards, mask, list("aaabbbccc"))
    assert advantages.isfinite().all()
    assert returns.isfinite().all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"f_norm": "var"}, "f_norm='var' is unknown; allowed: '1', 'std'"),
        ({"f_norm": 1}, "f_norm=1 is unknown; allowed: '1', 'std'"),
        ({"alpha": "on"}, "alpha='on' is unknown; allowed: 'sample', 'token', 'none'"),
    ],
)
def test_unknown_settings(setting, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        statistics([[1, 0]], **setting)


@pytest.mark.parametrize(
    ("scores", "index", "lengths"),
    [
        (torch.zeros(3), ["a"] * 2, torch.ones(3)),
        (torch.zeros(3), ["a"] * 3, torch.ones(2)),
        (torch.zeros(3, 1), ["a"] * 3, torch.ones(3)),
        (torch.zeros(2), [["a", "b"], ["a", "b"]], torch.ones(2)),
    ],
)
def test_shapes_must_match(scores, index, lengths):
    with pytest.raises(ValueError, match=r"same shape \(rows,\), got scores"):
        group_statistics(scores, index, lengths)


@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.ones(3, 2), torch.ones(2)])
def test_token_shapes_must_match(mask):
    with pytest.raises(ValueError, match=r"same shape \(rows, T\), got \(2, 2\)"):
        gpg_advantage(torch.zeros(2, 2), mask, ["a", "a"])


@pytest.mark.parametrize(
    "index",
    [
        ["x", "y", "x", "y"],
        np.array(["x", "y", "x", "y"], dtype=object),
        [1, "1", 1, "1"],
        [None, 0, None, 0],
    ],
    ids=["list", "numpy", "mixed types", "None"],
)
def test_any_hashable_is_a_group_id(index):
    seen = group_statistics(torch.tensor([1.0, 1.0, 0.0, 1.0]), index, torch.ones(4))
    assert close(seen.advantages, [1, 0, -1, 0])


def test_a_session_is_one_sample_whatever_its_outputs():
    """Two sessions of one prompt: outputs 0, 1 and 2, of which 1 wrote nothing; and output 3."""
    scores, lengths = torch.tensor([9.0, 9.0, 1.0, 0.0]), torch.tensor([4, 0, 2, 3])
    sessions = Sessions(of_row=torch.tensor([0, 0, 0, 1]), final=torch.tensor([2, 3]))
    seen = session_statistics(scores, ["a"] * 4, lengths, sessions, alpha="token")
    assert close(seen.advantages, [0.5, 0.5, 0.5, -0.5])
    assert (seen.valid.tolist(), seen.counted.tolist()) == ([True, False, True, True],) * 2
    assert (seen.B, seen.M, seen.groups, seen.alpha) == (2, 0, 1, 1.0)
    less = session_statistics(scores, ["a"] * 4, lengths, sessions, left_out=torch.tensor([False, False, True, False]))
    assert close(less.advantages, [0.5, 0.5, 0, -0.5])
    assert less.valid.tolist() == [True, False, False, True]
    assert (less.B, less.M, less.counted.tolist()) == (2, 0, seen.counted.tolist())


# --- Tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize(
    ("rewards", "mask", "returns"),
    [
        # reward on the last token, veRL's usual place: every response token has all of it ahead
        ([0, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]),
        ([0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]),
        # after the last token of the policy, and in the middle, tool tokens
        ([0, 0, 0, 1], [1, 0, 1, 0], [1, 0, 1, 0]),
        ([0, 0, 1, 0], [1, 0, 1, 0], [1, 0, 1, 0]),
        # reward on the way
        ([1, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]),
        ([1, 2, 3, 0], [1, 1, 1, 0], [6, 5, 3, 0]),
        ([1, 2, 3, 4], [1, 0, 1, 0], [10, 0, 7, 0]),  # tokens outside the mask have rewards too
        ([1, -1, 0, 0], [1, 1, 1, 1], [0, -1, 0, 0]),
        # padding
        ([0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_returns_are_rewards_to_go(rewards, mask, returns, mask_dtype, device):
    other_rewards, other_mask = [0, 0, 0, 9], [1, 1, 1, 1]  # a second response, so that there is a group
    rewards = torch.tensor([rewards, other_rewards], dtype=torch.float32, device=device)
    mask = torch.tensor([mask, other_mask], device=device).to(mask_dtype)
    advantages, to_go, seen = gpg_advantage(rewards, mask, ["a", "a"])
    assert to_go.tolist() == [returns, [9, 9, 9, 9]]
    assert torch.equal(advantages, seen.advantages.unsqueeze(-1) * mask)
    assert to_go.dtype == advantages.dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_dtypes(given, expected):
    rewards = torch.tensor([[0, 1], [0, 0]], dtype=given, requires_grad=True)
    advantages, returns, seen = gpg_advantage(rewards, torch.ones(2, 2), ["a", "a"])
    assert {x.dtype for x in (advantages, returns, seen.advantages)} == {expected}
    assert not advantages.requires_grad


def test_inputs_are_left_alone():
    rewards, mask = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.ones(2, 2)  # a mask of the output's dtype
    gpg_advantage(rewards, mask, ["a", "a"])
    assert rewards.tolist() == [[0, 1], [0, 0]]
    assert mask.tolist() == [[1, 1], [1, 1]]


# --- Random batches against the paper's definition ---------------------------------------------------------


def reference(token_rewards, masks, index, f_norm, alpha):
    """paper.md's equations, one row at a time, in exact arithmetic. Returns Â_i, returns, B, M, α."""
    samples = [i for i, mask in enumerate(masks) if any(mask)]
    r = {i: sum(token_rewards[i]) for i in samples}
    group_of = {i: [j for j in samples if index[j] == index[i]] for i in samples}
    valid = [i for i in samples if len({r[j] for j in group_of[i]}) > 1]

    B, M = len(samples), len(samples) - len(valid)
    tokens = {i: sum(masks[i]) for i in samples}
    α = Fraction(1)
    if valid and alpha == "sample":
        α = Fraction(B, B - M)
    if valid and alpha == "token":
        α = Fraction(sum(tokens.values()), sum(tokens[i] for i in valid))

    advantages = [0.0] * len(masks)
    for i in valid:
        group = [r[j] for j in group_of[i]]
        mean = sum(group) / len(group)
        f = math.sqrt(sum((x - mean) ** 2 for x in group) / (len(group) - 1)) if f_norm == "std" else 1
        advantages[i] = float(α * (r[i] - mean)) / f
    returns = [
        [float(sum(row[t:])) * on for t, on in enumerate(mask)] for row, mask in zip(token_rewards, masks, strict=True)
    ]
    return advantages, returns, B, M, float(α)


@st.composite
def batches(draw):
    """(token rewards as exact fractions, masks, group ids): groups of any size, rows in any order."""
    T = draw(st.integers(1, 6))
    values = draw(st.sampled_from([["0", "1"], ["-1", "1"], ["0", "0.1", "0.7", "1"], ["-0.5", "0", "0.3", "2"]]))
    value = st.sampled_from([Fraction(v) for v in values])
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    everywhere = draw(st.booleans())  # rewards on every token, or on the last one
    rows = []
    for g, size in enumerate(sizes):
        for _ in range(size):
            mask = draw(
                st.one_of(
                    st.integers(0, T).map(lambda n: [1] * n + [0] * (T - n)),  # one answer, or padding
                    st.lists(st.integers(0, 1), min_size=T, max_size=T),  # several turns
                )
            )
            if everywhere:
                rewards = draw(st.lists(value, min_size=T, max_size=T))
            else:
                last = max((t for t in range(T) if mask[t]), default=0)
                rewards = [Fraction(0)] * T
                rewards[last] = draw(value)
            rows.append((rewards, mask, f"uid-{g}"))
    rewards, masks, index = zip(*draw(st.permutations(rows)), strict=True)
    return rewards, masks, index


def tensors(rewards, masks):
    return torch.tensor([[float(x) for x in row] for row in rewards]), torch.tensor(masks)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("f_norm", F_NORMS)
@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_equals_the_definition(batch, f_norm, alpha):
    rewards, masks, index = batch
    r, mask = tensors(rewards, masks)
    advantages, returns, seen = gpg_advantage(r, mask, np.array(index, dtype=object), f_norm=f_norm, alpha=alpha)
    expected, expected_returns, B, M, α = reference(rewards, masks, index, f_norm, alpha)
    assert (seen.B, seen.M) == (B, M)
    assert seen.alpha == pytest.approx(α)
    assert close(seen.advantages, expected)
    assert close(advantages, [[a * m for m in row] for a, row in zip(expected, masks, strict=True)])
    assert close(returns, expected_returns)
    assert seen.valid_share == ((B - M) / B if B else 0)


# --- veRL's own estimator ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "lengths", "ours", "verls"),
    [
        # the first row's Â; veRL's α is B / (samples with a non-zero reward), not B / (samples of valid groups)
        ([[1, 0], [1, 1]], [1] * 4, 2.0 * 0.5, 4 / 3 * 0.5),  # a sample of an all-right group counts, a wrong one not
        ([[1, -1], [-1, -1]], [1] * 4, 2.0, 1.0),  # rewards of ±1: every sample counts
        ([[1, *[0] * 7]], [1] * 8, 7 / 8, 8 * 7 / 8),  # rare success: the only group is valid
        ([[1, 0], [0, 0]], [1, 1, 0, 0], 0.5, 4 * 0.5),  # padding rows are in its B
        ([[1]], [1], 0.0, 1.0),  # a group of one has its raw reward
    ],
    ids=["right answers", "rewards of ±1", "rare success", "padding", "a group of one"],
)
def test_differs_from_verls_own_where_verl_is_wrong(groups, lengths, ours, verls):
    from verl.trainer.ppo.core_algos import compute_gpg_outcome_advantage

    rewards = torch.tensor([[float(r)] for group in groups for r in group])
    mask = torch.tensor(lengths).unsqueeze(-1)
    index = np.array([f"uid-{g}" for g, group in enumerate(groups) for _ in group], dtype=object)
    for estimator, expected in ((gpg_advantage, ours), (compute_gpg_outcome_advantage, verls)):
        assert estimator(rewards, mask, index)[0][0].item() == pytest.approx(expected)
