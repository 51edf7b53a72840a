"""A group's rows as one prefix tree: a token that rows share is computed once, and the vocabulary only where a sampled
token is scored.

Rows sorted by their tokens stand in the depth-first order of their tree: each shares a number of first tokens with the
row before it and adds the rest, its branch. Everything here follows from those two numbers. The gradient of Σ w · log π
over the tree, with w the sum of the weights of all rows that pass, is that of the rows one by one. Pure numpy.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Branches:
    """Rows in the depth-first order of their prefix tree.

    rows: (n,) which row each is; rows without a scored token are not among them.
    shared: (n,) how many first tokens it has in common with the one before it; 0 for the first.
    lengths: (n,) its tokens up to the last scored one and with it; later ones predict nothing that counts.
    """

    rows: np.ndarray
    shared: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, end: int) -> Branches:
        """The rows start:end as a tree of their own, which has the first one's shared tokens again."""
        shared = self.shared[start:end].copy()
        shared[:1] = 0
        return Branches(self.rows[start:end], shared, self.lengths[start:end])

    def added(self) -> np.ndarray:
        """(n,) tokens of each that no row before it has."""
        return self.lengths - self.shared

    def ends(self) -> np.ndarray:
        """(n,) bool: its last token stands in the tree only to be scored; no row goes on from there, so that what
        follows it need not be predicted, and it is not computed. False where the row adds nothing.
        """
        adds = np.flatnonzero(self.added())
        ends = np.zeros(len(self), dtype=bool)
        # In sorted order a row that goes on from this one is the next that adds anything.
        goes_on = np.zeros(len(adds), dtype=bool)
        goes_on[:-1] = self.shared[adds[1:]] >= self.lengths[adds[:-1]]
        ends[adds] = ~goes_on
        return ends

    def computed(self) -> np.ndarray:
        """(n,) tokens that each adds to the forward pass."""
        return self.added() - self.ends()


@dataclass(frozen=True)
class Rows:
    """Token sequences one behind the other, and which of their tokens are scored.

    offsets: (rows + 1,) row i has the tokens offsets[i]:offsets[i + 1].
    prompts: (rows,) how many first tokens of each are not scored; at least one of every row with any.
    mask: (tokens,) bool, those that are scored, False on prompts; None where all tokens behind the prompts are.
    """

    offsets: np.ndarray
    prompts: np.ndarray
    mask: np.ndarray | None = None

    def lengths(self) -> np.ndarray:
        """(rows,) of each, up to its last scored token; 0 without one."""
        lengths = np.diff(self.offsets)
        if self.mask is None:
            return np.where(lengths > self.prompts, lengths, 0)
        last = np.zeros_like(lengths)
        for i, (start, end) in enumerate(itertools.pairwise(self.offsets.tolist())):
            places = np.flatnonzero(self.mask[start:end])
            if len(places):
                last[i] = places[-1] + 1
        return last

    def scored(self) -> np.ndarray:
        """Where the scored tokens stand, of one row after the other."""
        if self.mask is not None:
            return np.flatnonzero(self.mask)
        counts = np.maximum(np.diff(self.offsets) - self.prompts, 0)
        first = self.offsets[:-1] + self.prompts - (np.cumsum(counts) - counts)
        return np.repeat(first, counts) + np.arange(counts.sum())


def branches(symbols: np.ndarray, rows: Rows) -> Branches:
    """The prefix tree of rows.

    Args:
        symbols: (tokens,) or (tokens, k) int, what makes two tokens the same: the token id and, where they could
            differ between rows, its position ids and what else the model is told of it.
    """
    symbols = symbols.reshape(len(symbols), -1)
    numbers, width = np.ascontiguousarray(symbols, dtype=np.int32).reshape(-1), symbols.shape[1]
    lengths = rows.lengths()
    kept = np.flatnonzero(lengths)
    keys = {
        i: numbers[start : start + length].tobytes()
        for i, start, length in zip(
            kept.tolist(), (rows.offsets[kept] * width).tolist(), (lengths[kept] * width).tolist(), strict=True
        )
    }
    # Any order will do in which equal beginnings stand together; that of bytes is compared at the speed of memory.
    order = sorted(keys, key=keys.__getitem__)
    shared = [0] * len(order)
    for j in range(1, len(order)):
        shared[j] = _common(keys[order[j - 1]], keys[order[j]]) // (4 * width)
    order = np.array(order, dtype=np.int64)
    return Branches(order, np.array(shared, dtype=np.int64), lengths[order])


def _common(a: bytes, b: bytes) -> int:
    """How many first bytes two texts have in common, rounded down to four."""
    short = min(len(a), len(b))
    step, done = 1024, 0
    while done < short:
        end = min(done + step, short)
        if a[done:end] != b[done:end]:
            x, y = (np.frombuffer(text, np.int32, (end - done) // 4, done) for text in (a, b))
            return done + 4 * int((x != y).argmax())
        done, step = end, step * 4
    return short


def cut(whole: Branches, budget: int) -> list[tuple[int, int]]:
    """Cuts the rows, in their order, into parts of at most `budget` computed tokens each (a longer row is a part of its
    own). A part repeats what its first row shares with the one before, so cuts are made where that is least.

    Returns (start, end) of each.
    """
    ends = np.concatenate([[0], np.cumsum(whole.computed())])
    parts, start = [], 0
    while start < len(whole):
        spent = ends - ends[start] + whole.shared[start]
        end = int(np.searchsorted(spent, budget, side="right")) - 1
        if end < len(whole):
            end = max(end, start + 1)
            # Of the places past three quarters of the budget, the one that repeats least, the last of several.
            first = max(start + 1, int(np.searchsorted(spent, 0.75 * budget)))
            places = whole.shared[first : end + 1][::-1]
            if len(places):
                end -= int(places.argmin())
        parts.append((start, end))
        start = end
    return parts


def cut_evenly(whole: Branches, budget: int, count: int) -> list[tuple[int, int]]:
    """As `cut`, into at most `count` parts where that many suffice for the budget, as even in size as they can be."""
    low, high = 0, budget
    best = cut(whole, budget)
    while high - low > max(1, budget // 64):
        middle = (low + high) // 2
        parts = cut(whole, middle)
        if len(parts) <= max(count, len(best)):
            best, high = parts, middle
        else:
            low = middle
    return best


@dataclass(frozen=True)
class Tree:
    """What a forward pass over a tree takes, and the way back to the rows. A node is a token that is computed; nodes
    stand in depth-first order.

    source: (nodes,) where the node's token stands among all rows' tokens.
    starts: (branches,) the first node of each row's branch; a branch is a chain.
    before: for each branch the nodes in front of its first one, from the root on.
    positions: (K,) the nodes after which a token is scored, in order.
    at: (pairs,) for each scored token of the tree, the place in `positions` of the node that it follows.
    token: (pairs,) where the token stands among all rows' tokens.
    flat, pair: (scored tokens of all rows,) where it stands among all rows' tokens, and its pair.
    """

    source: np.ndarray
    starts: np.ndarray
    before: list[np.ndarray]
    positions: np.ndarray
    at: np.ndarray
    token: np.ndarray
    flat: np.ndarray
    pair: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def branches(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(first node, node behind the last, nodes before) of each branch with a node."""
        ends = [*self.starts[1:].tolist(), len(self)]
        for start, end, before in zip(self.starts.tolist(), ends[: len(self.starts)], self.before, strict=True):
            if start < end:
                yield start, end, before

    @functools.cached_property
    def end(self) -> np.ndarray:
        """(nodes,) the first node after its subtree: q sees k where k <= q < end[k]."""
        end = np.full(len(self), len(self))
        path = np.zeros(0, dtype=np.int64)
        for start, stop, before in self.branches():
            end[path[len(before) :]] = start
            path = np.concatenate([before, np.arange(start, stop)])
        return end

    def weights(self, values: np.ndarray) -> np.ndarray:
        """(pairs,) the sum of `values` (tokens of all rows,) over the rows that score the pair."""
        return np.bincount(self.pair, values[self.flat], minlength=len(self.at))

    def visible(self) -> int:
        """Pairs of a query and a key that it sees."""
        return sum((end - start) * (2 * len(before) + end - start + 1) // 2 for start, end, before in self.branches())


def grow(part: Branches, rows: Rows) -> Tree:
    """The tree of some rows."""
    added, computed = part.added(), part.computed()
    # Tokens of the tree, those that are only scored among them, are numbered as nodes are. A number is its node's but
    # for those of the branches before that have none.
    first, first_node = (np.concatenate([[0], np.cumsum(x)]) for x in (added, computed))
    size = int(first[-1])
    gone = first[:-1] - first_node[:-1]
    numbers = np.arange(size)
    is_scored = np.zeros(size, dtype=bool)
    path = np.zeros(int(part.lengths.max(initial=0)), dtype=np.int64)
    nodes = path.copy()  # of the path
    before, parents, flat, pair = [], [], [], []
    for start, new, shared, stop, less, row, prompt in zip(
        first[:-1].tolist(),
        added.tolist(),
        part.shared.tolist(),
        part.lengths.tolist(),
        gone.tolist(),
        rows.offsets[part.rows].tolist(),
        rows.prompts[part.rows].tolist(),
        strict=True,
    ):
        if new:
            before.append(nodes[:shared].copy())
            parents.append(nodes[shared - 1] if shared else -1)
            path[shared:stop] = numbers[start : start + new]
            nodes[shared:stop] = numbers[start - less : start + new - less]
        if rows.mask is None:
            flat.append(np.arange(row + prompt, row + stop))
            scored = path[prompt:stop].copy()
            is_scored[path[prompt : max(prompt, shared)]] = True
            is_scored[start + max(prompt, shared) - shared : start + new] = True
        else:
            places = np.flatnonzero(rows.mask[row : row + stop])
            flat.append(places + row)
            scored = path[places]
            is_scored[scored] = True
        pair.append(scored)
    flat, pair = (np.concatenate(x) if x else np.zeros(0, dtype=np.int64) for x in (flat, pair))

    adds = np.flatnonzero(added)
    offset = rows.offsets[part.rows] + part.shared
    pairs = np.flatnonzero(is_scored)
    number = np.empty(size, dtype=np.int64)
    number[pairs] = np.arange(len(pairs))
    follows = numbers - np.repeat(gone + 1, added)  # the node before each token, but for a branch's first
    follows[first[adds]] = parents
    follows = follows[pairs]
    scores = np.zeros(int(first_node[-1]), dtype=bool)
    scores[follows] = True
    positions = np.flatnonzero(scores)
    place = np.empty(len(scores), dtype=np.int64)
    place[positions] = np.arange(len(positions))
    return Tree(
        source=np.arange(len(scores)) + np.repeat(offset - first_node[:-1], computed),
        starts=first_node[adds],
        before=before,
        positions=positions,
        at=place[follows],
        token=pairs + np.repeat(offset - first[:-1], added)[pairs],
        flat=flat,
        pair=number[pair],
    )


@dataclass(frozen=True)
class Block:
    """Queries start:end of a tree that attend together, to the keys `before` and start:end.

    chain: whether they are one branch, so that each sees all of `before` and what precedes it; otherwise who sees whom
    is a question of intervals.
    """

    start: int
    end: int
    before: np.ndarray
    chain: bool


def blocks(tree: Tree, overhead: int) -> list[Block]:
    """The tree's branches, neighbours joined into one block where the pairs that it computes in vain are fewer than
    `overhead`, what calling attention once more costs in pairs.

    A later branch's ancestors are the block's own nodes and some of its first branch's ancestors: siblings see no more.
    """
    result: list[Block] = []
    for start, end, before in tree.branches():
        new = Block(start, end, before, chain=True)
        if result:
            last = result[-1]
            joined = Block(last.start, end, last.before, chain=False)
            if _pairs(joined) <= _pairs(last) + _pairs(new) + overhead:
                result[-1] = joined
                continue
        result.append(new)
    return result


def _pairs(block: Block) -> int:
    size = block.end - block.start
    return size * (len(block.before) + size)


def sees(tree: Tree, queries: Sequence[int] | np.ndarray, keys: Sequence[int] | np.ndarray) -> np.ndarray:
    """(queries, keys) bool: each query sees its ancestors and itself."""
    queries, keys = np.asarray(queries, dtype=np.int64)[:, None], np.asarray(keys, dtype=np.int64)[None, :]
    return (keys <= queries) & (queries < tree.end[keys])
