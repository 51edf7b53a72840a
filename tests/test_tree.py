"""A group's rows as one prefix tree, against a tree of dicts and against the rows one by one."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_verl.algorithm.tree import Rows, Tree, attention_mask, blocks, branches, build_tree, cut, cut_evenly


def flat(rows, masks=None):
    """rows: (prompt, response) each. Returns the tokens and `Rows`."""
    offsets = np.cumsum([0, *(len(p) + len(r) for p, r in rows)])
    tokens = np.array([t for p, r in rows for t in [*p, *r]], dtype=np.int64)
    masks = masks or [[True] * len(r) for _, r in rows]
    scored = [x for (p, _), m in zip(rows, masks, strict=True) for x in [*[False] * len(p), *m]]
    return tokens, Rows(offsets, np.array(scored, dtype=bool))


def tree_of(rows, masks=None):
    """The tokens, the tree of all rows, and the tokens as they stand in it: of its rows, one behind the other."""
    tokens, where = flat(rows, masks)
    whole = branches(tokens, where)
    places = [np.arange(*where.offsets[row : row + 2]) for row in whole.rows]
    return tokens, build_tree(whole, 0, len(whole), where), np.concatenate([np.zeros(0, dtype=np.int64), *places])


def weights_of(tree, values):
    """(pairs,) the sum of `values` (tokens of all rows,) over the rows that score the pair."""
    return np.bincount(tree.pair, values[tree.flat], minlength=len(tree.follows))


def ancestors(tree):
    """Of each node: the nodes that it sees."""
    everything = attention_mask(tree, range(len(tree)), range(len(tree)))
    return [np.flatnonzero(row).tolist() for row in everything]


# (rows, tokens computed, positions scored, pairs scored)
P = [7, 8, 9]
TABLE = {
    "one row": ([(P, [1, 2, 3])], 5, 3, 3),
    "nothing in common behind the prompt": ([(P, [1, 2]), (P, [3, 4, 5])], 3 + 1 + 2, 1 + 1 + 2, 5),
    "a common beginning": ([(P, [1, 2, 3]), (P, [1, 2, 4])], 3 + 2, 3, 4),
    "one twice": ([(P, [1, 2]), (P, [1, 2])], 4, 2, 2),
    "another's beginning": ([(P, [1, 2, 3]), (P, [1]), (P, [1, 2])], 5, 3, 3),
    "one token each": ([(P, [1]), (P, [2])], 3, 1, 2),
    "prompts that differ in their last token": ([([7, 8], [1, 2]), ([7, 9], [1, 2])], 1 + 2 + 2, 4, 4),
    "prompts that differ in their first token": ([([5, 8], [1]), ([6, 8], [1])], 4, 2, 2),
    "a prompt that is another's beginning": ([([7], [8, 1]), ([7, 8], [1, 1])], 3, 3, 3),
    "a response of none": ([(P, []), (P, [1])], 3, 1, 1),
}


@pytest.mark.parametrize(("rows", "computed", "scored", "pairs"), TABLE.values(), ids=TABLE)
def test_what_is_computed_and_scored(rows, computed, scored, pairs):
    _, tree, _ = tree_of(rows)
    assert (len(tree), len(np.unique(tree.follows)), len(tree.follows)) == (computed, scored, pairs)
    assert int(branches(*flat(rows)).computed().sum()) == computed


def test_what_the_policy_did_not_write_is_computed_and_not_scored():
    """A tool's answer 5 5 within one row, and at the end of the other, where nothing follows that counts."""
    rows = [(P, [1, 5, 5, 2]), (P, [1, 2, 5, 5])]
    _, tree, _ = tree_of(rows, [[1, 0, 0, 1], [1, 1, 0, 0]])
    assert len(tree) == 3 + 3  # the prompt and 1 5 5
    assert sorted(tree.follows.tolist()) == [2, 3, 5]


def test_positions_and_images_tell_tokens_apart():
    rows = [(P, [1, 2]), (P, [1, 3])]
    tokens, where = flat(rows)
    again = np.stack([tokens, np.zeros_like(tokens)], axis=1)
    again[where.offsets[1] + 1 :, 1] = 1  # from the second token on another position, or another image
    assert branches(again, where).computed().sum() == 1 + 3 + 3


def test_a_weight_is_the_sum_over_rows():
    rows = [(P, [1, 2]), (P, [1, 2]), (P, [1, 3])]
    tokens, tree, places = tree_of(rows)
    weights = weights_of(tree, np.repeat([0.5, -0.25, 2.0], 5)[places])
    seen = dict(zip(tokens[places][tree.token].tolist(), weights.tolist(), strict=True))
    assert seen == {1: 2.25, 2: 0.25, 3: 2.0}


def test_siblings_do_not_see_each_other():
    rows = [(P, [1, 2, 3]), (P, [4, 5, 6])]
    tokens, tree, places = tree_of(rows)
    for node, seen in enumerate(ancestors(tree)):
        assert node in seen
        branch = set(tokens[places[tree.source[seen]]].tolist()) - set(P)
        assert not ({1, 2} & branch and {4, 5} & branch)


token = st.integers(0, 3)
group = st.tuples(
    st.lists(token, min_size=1, max_size=4), st.lists(st.lists(token, max_size=6), min_size=1, max_size=5)
)
many = st.lists(group, min_size=1, max_size=4).map(lambda groups: [(p, r) for p, rs in groups for r in rs])


@st.composite
def rows_and_masks(draw):
    rows = draw(many)
    if draw(st.booleans()):
        return rows, None
    return rows, [draw(st.lists(st.booleans(), min_size=len(r), max_size=len(r))) for _, r in rows]


@settings(max_examples=300, deadline=None)
@given(rows_and_masks())
def test_it_is_the_tree_of_the_rows(case):
    """Every scored token of every row is predicted by the node that has seen exactly what stands before it."""
    rows, masks = case
    tokens, tree, places = tree_of(rows, masks)
    seen, offsets = ancestors(tree), np.cumsum([0, *(len(p) + len(r) for p, r in rows)])
    expected = [
        (offset + place, tuple([*p, *r][:place]), [*p, *r][place])
        for i, ((p, r), offset) in enumerate(zip(rows, offsets, strict=False))
        for place in range(len(p), len(p) + len(r))
        if masks is None or masks[i][place - len(p)]
    ]
    pairs = dict(zip(places[tree.flat].tolist(), tree.pair.tolist(), strict=True))
    assert set(pairs) == {place for place, _, _ in expected}
    for place, before, following in expected:
        pair = pairs[place]
        assert tuple(tokens[places[tree.source[seen[tree.follows[pair]]]]]) == before
        assert tokens[places[tree.token[pair]]] == following
    # No token twice, none for nothing: what is computed are the different beginnings that predict something.
    beginnings = {before[:i] for _, before, _ in expected for i in range(1, len(before) + 1)}
    assert len(tree) == len(beginnings)
    assert len(np.unique(tree.follows)) == len({before for _, before, _ in expected})
    assert len(tree.follows) == len({(before, t) for _, before, t in expected})
    assert tree.num_attended_pairs() == sum(map(len, seen))
    assert weights_of(tree, np.ones(len(tokens))).sum() == len(expected)


@settings(max_examples=300, deadline=None)
@given(rows_and_masks(), st.sampled_from([0, 3, 20, 10**9]))
def test_blocks_have_all_keys_of_their_queries(case, overhead):
    rows, masks = case
    _, tree, _ = tree_of(rows, masks)
    covered = []
    for block in blocks(tree, overhead):
        covered += range(block.start, block.end)
        keys = [*block.before.tolist(), *range(block.start, block.end)]
        whole = attention_mask(tree, range(block.start, block.end), range(len(tree)))
        assert whole.sum() == attention_mask(tree, range(block.start, block.end), keys).sum()
        if block.chain:
            lower = np.tri(block.end - block.start, len(keys), len(block.before), dtype=bool)
            assert (attention_mask(tree, range(block.start, block.end), keys) == lower).all()
    assert covered == list(range(len(tree)))
    assert overhead < 10**9 or len(blocks(tree, overhead)) <= 1


@settings(max_examples=300, deadline=None)
@given(rows_and_masks(), st.integers(1, 30), st.integers(1, 6))
def test_parts_are_within_the_budget(case, budget, count):
    rows, masks = case
    tokens, where = flat(rows, masks)
    whole = branches(tokens, where)
    for parts in (cut(whole, budget), cut_evenly(whole, budget, count)):
        assert [i for start, end in parts for i in range(start, end)] == list(range(len(whole)))
        for start, end in parts:
            tree = build_tree(whole, start, end, where)
            assert len(tree) <= budget or end == start + 1
            # It is the tree of the part's rows alone.
            own = whole.rows[start:end]
            _, alone, places = tree_of([rows[i] for i in own], masks and [masks[i] for i in own])
            assert np.array_equal(places, np.arange(len(places)))
            for field in dataclasses.fields(Tree):
                assert np.array_equal(np.hstack(getattr(tree, field.name)), np.hstack(getattr(alone, field.name)))
    fewest, even = cut(whole, budget), cut_evenly(whole, budget, count)
    assert len(even) <= max(count, len(fewest))
    assert repeated(whole, even) <= repeated(whole, fewest) + whole.computed().sum() / 100


def repeated(whole, parts) -> int:
    return sum(int(whole.shared[start]) for start, _ in parts)


def groups(prompts: list[tuple[int, list[int]]]):
    """The tree of groups that share no token: (tokens of the prompt, of each response)."""
    tokens = itertools.count()
    rows = []
    for length, responses in prompts:
        prompt = list(itertools.islice(tokens, length))
        rows += [(prompt, list(itertools.islice(tokens, response))) for response in responses]
    return branches(*flat(rows))


def test_parts_are_cut_between_prompts_where_that_repeats_less():
    whole = groups([(600, [100] * 8), (600, [110] * 8), (600, [90] * 8)])  # of 1,392, 1,472 and 1,312 computed tokens
    assert cut_evenly(whole, 10_000, 1) == [(0, 24)]
    assert cut_evenly(whole, 10_000, 3) == [(0, 8), (8, 16), (16, 24)]
    assert cut_evenly(whole, 2_500, 1) == [(0, 8), (8, 16), (16, 24)]
    # Asked for more parts, it does not cut a group: that would repeat its prompt.
    assert cut_evenly(whole, 10_000, 20) == [(0, 8), (8, 16), (16, 24)]
