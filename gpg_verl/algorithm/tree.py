"""A group's rows as one prefix tree: a token that rows share is computed once, and the vocabulary only where a sampled
token is scored.

Rows sorted by their tokens stand in the depth-first order of their tree: each shares a number of first tokens with the
row before it and adds the rest, its branch. Everything here follows from those two numbers. The gradient of Σ w · log π
over the tree, with w the sum of the weights of all rows that pass, is that of the rows one by one. Pure numpy.
"""

from __future__ import annotations

import bisect
import functools
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
    scored: (tokens,) bool, those whose log-prob is asked for; never a row's first, which nothing predicts.
    """

    offsets: np.ndarray
    scored: np.ndarray

    def lengths(self) -> np.ndarray:
        """(rows,) of each, up to its last scored token and with it; 0 without one."""
        last = np.maximum.accumulate(np.where(self.scored, np.arange(1, len(self.scored) + 1), 0))
        return np.maximum(np.append(0, last)[self.offsets[1:]] - self.offsets[:-1], 0)


def branches(symbols: np.ndarray, rows: Rows) -> Branches:
    """The prefix tree of rows.

    Args:
        symbols: (tokens,) or (tokens, k) int, what makes two tokens the same: the token id and, where they could
            differ between rows, its position ids and what else the model is told of it.
    """
    width = symbols[:1].size or 1
    numbers = np.zeros(symbols.size + WINDOW, dtype=np.int32)
    numbers[: symbols.size] = symbols.reshape(-1)
    lengths = rows.lengths()
    kept = np.flatnonzero(lengths)
    starts, counts = rows.offsets[kept] * width, lengths[kept] * width
    keys = [numbers[a:b].tobytes() for a, b in zip(starts.tolist(), (starts + counts).tolist(), strict=True)]
    # Any order will do in which equal beginnings stand together; that of bytes is compared at the speed of memory.
    order = sorted(range(len(keys)), key=keys.__getitem__)
    kept, starts, counts = kept[order], starts[order], counts[order]
    shared = _common(numbers, starts[:-1], starts[1:], np.minimum(counts[:-1], counts[1:])) // width
    return Branches(kept, np.append(0, shared)[: len(kept)], lengths[kept])


WINDOW = 128  # numbers that are compared at once, of all rows that are the same so far


def _common(numbers: np.ndarray, a: np.ndarray, b: np.ndarray, most: np.ndarray) -> np.ndarray:
    """How many numbers from each `a` on are those from `b` on, at most `most`; behind the last are WINDOW others."""
    windows, common = np.lib.stride_tricks.sliding_window_view(numbers, WINDOW), most.copy()
    alike, done = np.arange(len(most)), 0
    while len(alike):
        differ = windows[a[alike] + done] != windows[b[alike] + done]
        first, differs = differ.argmax(axis=1), differ.any(axis=1)
        found = alike[differs]
        common[found] = np.minimum(done + first[differs], most[found])
        done += WINDOW
        alike = alike[~differs & (most[alike] > done)]
    return common


def cut(whole: Branches, budget: int) -> list[tuple[int, int]]:
    """Cuts the rows, in their order, into parts of at most `budget` computed tokens each (a longer row is a part of its
    own). A part repeats what its first row shares with the one before, so cuts are made where that is least.

    Returns (start, end) of each.
    """
    ends, shared = [0, *whole.computed().cumsum().tolist()], whole.shared.tolist()
    parts, start, rows = [], 0, len(whole)
    while start < rows:
        cumulative_cost = ends[start] - shared[start]
        end = max(start + 1, bisect.bisect_right(ends, cumulative_cost + budget) - 1)
        if end < rows:
            # Of the places past half of the budget, the one that repeats least, the last of several.
            first = max(start + 1, bisect.bisect_left(ends, cumulative_cost + 0.5 * budget))
            end = min(range(end, first - 1, -1), key=shared.__getitem__, default=end)
        parts.append((start, end))
        start = end
    return parts


def cut_evenly(whole: Branches, budget: int, count: int) -> list[tuple[int, int]]:
    """As `cut`, into at most `count` parts where that many suffice for the budget, as even in size as they can be
    without repeating more than 1 % of all tokens beyond what `cut` repeats.
    """

    def repeated(parts: list[tuple[int, int]]) -> int:
        return int(whole.shared[[start for start, _ in parts]].sum())

    fewest, tokens = cut(whole, budget), int(whole.computed().sum())
    most = repeated(fewest) + tokens / 100
    count = max(count, len(fewest), 1)
    size = tokens // count  # fewer tokens each are not enough
    while size < budget:
        parts = cut(whole, size)
        if len(parts) <= count and repeated(parts) <= most:
            return parts
        size += max(1, size // 32)
    return fewest


@dataclass(frozen=True)
class Tree:
    """What a forward pass over a tree takes, and the way back to the rows. A node is a token that is computed; nodes
    stand in depth-first order. A pair is a scored token of the tree and the node that it follows: the node's logits
    are computed for each of its pairs.

    source: (nodes,) where the node's token stands among all rows' tokens.
    starts: (branches,) the first node of each row's branch; a branch is a chain.
    before: for each branch the nodes in front of its first one, from the root on.
    follows: (pairs,) the node that the token follows.
    token: (pairs,) where the token stands among all rows' tokens.
    flat, pair: (scored tokens of all rows,) where it stands among all rows' tokens, and its pair.
    """

    source: np.ndarray
    starts: np.ndarray
    before: list[np.ndarray]
    follows: np.ndarray
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

    def num_attended_pairs(self) -> int:
        """Pairs of a query and a key that it attends to."""
        return sum((end - start) * (2 * len(before) + end - start + 1) // 2 for start, end, before in self.branches())


def build_tree(whole: Branches, start: int, end: int, rows: Rows) -> Tree:
    """The tree of rows start:end of `whole`, whose tokens stand one row behind the other in this order."""
    shares = whole.shared[start:end].copy()
    shares[:1] = 0  # a part's first row repeats what it shares with the one before
    part = Branches(whole.rows[start:end], shares, whole.lengths[start:end])
    # Of the row at hand: the node and the pair of each of its tokens, -1 where it has none. The next row keeps the
    # first `shared` of both.
    nodes = pairs = none = np.zeros(0, dtype=np.int64)
    source, starts, before, follows, token, flat, pair = [none], [], [], [none], [none], [none], [none]
    node = scored_tokens = offset = 0
    for row, shared, length, new in zip(part.rows, part.shared, part.lengths, part.computed(), strict=True):
        if length > shared:
            source.append(np.arange(offset + shared, offset + shared + new))
            starts.append(node)
            before.append(nodes[:shared])
        unknown = np.full(length - shared, -1)
        nodes, pairs = np.concatenate([nodes[:shared], unknown]), np.concatenate([pairs[:shared], unknown])
        nodes[shared : shared + new] = np.arange(node, node + new)
        node += new
        scored = np.flatnonzero(rows.scored[rows.offsets[row] : rows.offsets[row + 1]])
        fresh = scored[pairs[scored] < 0]
        pairs[fresh] = np.arange(scored_tokens, scored_tokens + len(fresh))
        scored_tokens += len(fresh)
        follows.append(nodes[fresh - 1])
        token.append(offset + fresh)
        flat.append(offset + scored)
        pair.append(pairs[scored])
        offset += rows.offsets[row + 1] - rows.offsets[row]
    joined = [np.concatenate(parts) for parts in (source, follows, token, flat, pair)]
    return Tree(joined[0], np.array(starts, dtype=np.int64), before, *joined[1:])


@dataclass
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
    pairs = 0  # of the last
    for start, end, before in tree.branches():
        own = (end - start) * (len(before) + end - start)
        if result:
            last = result[-1]
            size = end - last.start
            joined = size * (len(last.before) + size)
            if joined <= pairs + own + overhead:
                last.end, last.chain, pairs = end, False, joined
                continue
        result.append(Block(start, end, before, chain=True))
        pairs = own
    return result


def attention_mask(tree: Tree, queries: Sequence[int] | np.ndarray, keys: Sequence[int] | np.ndarray) -> np.ndarray:
    """(queries, keys) bool: each query sees its ancestors and itself."""
    queries, keys = np.asarray(queries, dtype=np.int64)[:, None], np.asarray(keys, dtype=np.int64)[None, :]
    return (keys <= queries) & (queries < tree.end[keys])
