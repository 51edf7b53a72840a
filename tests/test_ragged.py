"""What a row needs, reduced from flat tensors: the same as from padded ones."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_verl.algorithm.ragged import repeat, rewards_to_go, row_lengths, row_rewards

tokens = st.tuples(st.sampled_from([0.0, 0.0, 0.1, 0.7, -1.0, 1.0]), st.sampled_from([0, 1]))
rows = st.lists(st.lists(tokens, max_size=6), min_size=1, max_size=6)


@settings(deadline=None)
@given(rows=rows)
def test_rows_are_those_of_the_padded_tensor(rows):
    lengths = torch.tensor([len(row) for row in rows])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    rewards = torch.tensor([r for row in rows for r, _ in row])
    mask = torch.tensor([m for row in rows for _, m in row], dtype=torch.int64)
    width = max(1, int(lengths.max()))
    padded = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor([r for r, _ in row])

    scores, magnitudes = row_rewards(rewards, offsets)
    torch.testing.assert_close(scores, padded.double().sum(-1).float())
    torch.testing.assert_close(magnitudes, padded.double().abs().sum(-1).float())
    to_go, expected_to_go = rewards_to_go(rewards, offsets), padded.double().flip(-1).cumsum(-1).flip(-1)
    for i, (start, stop) in enumerate(itertools.pairwise(offsets)):
        torch.testing.assert_close(to_go[start:stop].double(), expected_to_go[i, : stop - start], atol=1e-6, rtol=0)
    assert row_lengths(mask, offsets).tolist() == [sum(m for _, m in row) for row in rows]


def test_repeat():
    assert repeat(torch.tensor([1.5, 2.5, 3.5]), torch.tensor([2, 0, 1])).tolist() == [1.5, 1.5, 3.5]
