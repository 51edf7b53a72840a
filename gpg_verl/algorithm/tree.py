"""A group's rows as one prefix tree: a token that rows share is computed once, and the vocabulary only where a sampled
token is scored.

Rows sorted by their tokens stand in the depth-first order of their tree: each shares a number of first tokens with the
row before it and adds the rest, its branch. Everything here follows from those two numbers. The gradient of Σ w · log π
over the tree, with w the sum of the weights of all rows that pass, is that of the rows one by one. Pure numpy.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Runs:
    """Runs of numbers that count up by one: a tree of thousands of tokens has few, and numpy does not touch each token.

    starts, counts: (runs,) the first number of each and how many it has.
    """

    starts: np.ndarray
    counts: np.ndarray

    @property
    def ends(self) -> np.ndarray:
        return self.starts + self.counts

    def __getitem__(self, some: slice | np.ndarray) -> Runs:
        return Runs(self.starts[some], self.counts[some])

    def moved(self, by: int | np.ndarray) -> Runs:
        return Runs(self.starts + by, self.counts)

    def numbers(self) -> np.ndarray:
        """(Σ counts,) of one run after the other."""
        behind = self.counts.cumsum()
        numbers = (self.starts - behind + self.counts).repeat(self.counts)
        numbers += _counting(len(numbers).bit_length())[: len(numbers)]
        return numbers

    def union(self) -> Runs:
        """The numbers of all runs, each once, in order; runs that only touch stay apart."""
        order = np.argsort(self.starts)
        order = order[self.counts[order] > 0]
        starts, ends = self.starts[order], np.maximum.accumulate(self.ends[order])
        new = np.flatnonzero(np.append(True, starts[1:] >= ends[:-1])[: len(starts)])
        starts, last = starts[new], np.append(new[1:], len(ends))[: len(new)] - 1
        return Runs(starts, ends[last] - starts)

    def place(self, numbers: np.ndarray) -> np.ndarray:
        """Where each of `numbers` stands in `numbers()`, of runs in order that have it."""
        return numbers + (self.counts.cumsum() - self.ends)[_last(self.starts, numbers)]


def _last(starts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Of each of `numbers` the place of the last of `starts`, which are in order, that is not behind it."""
    return np.searchsorted(starts, numbers, side="right") - 1


@functools.lru_cache(maxsize=1)
def _counting(bits: int) -> np.ndarray:
    """0, 1, 2, ..., 2^bits - 1; counting takes longer than adding."""
    return np.arange(1 << bits)


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
    prompts: (rows,) how many first tokens of each are not scored; at least one of every row with any.
    mask: (tokens,) bool, those that are scored, False on prompts; None where all tokens behind the prompts are.
    """

    offsets: np.ndarray
    prompts: np.ndarray
    mask: np.ndarray | None = None

    def runs(self) -> Runs:
        """Of scored tokens; none goes on from one row to the next, as a row's first token is not scored."""
        if self.mask is None:
            starts = self.offsets[:-1] + self.prompts
            some = starts < self.offsets[1:]
            return Runs(starts[some], (self.offsets[1:] - starts)[some])
        edges = np.flatnonzero(np.diff(self.mask.view(np.int8), prepend=0, append=0))
        return Runs(edges[::2], edges[1::2] - edges[::2])

    def lengths(self) -> np.ndarray:
        """(rows,) of each, up to its last scored token; 0 without one."""
        runs, lengths = self.runs(), np.zeros(len(self.prompts), dtype=np.int64)
        row = _last(self.offsets, runs.starts)
        lengths[row] = runs.ends - self.offsets[row]  # of several runs the last one's stays
        return lengths


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
        spent = ends[start] - shared[start]
        end = max(start + 1, bisect.bisect_right(ends, spent + budget) - 1)
        if end < rows:
            # Of the places past half of the budget, the one that repeats least, the last of several.
            first = max(start + 1, bisect.bisect_left(ends, spent + 0.5 * budget))
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


def outlines(
    whole: Branches, parts: Sequence[tuple[int, int]], rows: Rows, offsets: np.ndarray
) -> list[tuple[Runs, ...]]:
    """The trees of parts of the rows, (start, end) of each as `cut` has them. All at once, and as runs of numbers, for
    what numpy costs is its calls; `grow` writes one out.

    Args:
        offsets: (rows of `whole`,) where each row's first token stands among the tokens of its part.
    """
    if not parts:
        return []
    edges = np.array([0, *(end for _, end in parts)])
    shared = whole.shared.copy()
    shared[edges[:-1]] = 0
    whole = Branches(whole.rows, shared, whole.lengths)
    added, computed = whole.added(), whole.computed()
    # Tokens of the trees, those that are only scored among them, are numbered in the order of nodes.
    first, first_node = (np.append(0, x.cumsum()) for x in (added, computed))

    # Each row's path from the root: which branch's tokens it has from which of its tokens on.
    depth, owner, pieces = [], [], []
    path: list[tuple[int, int]] = []
    for row, (begin, new) in enumerate(zip(shared.tolist(), added.tolist(), strict=True)):
        while path and path[-1][0] >= begin:
            path.pop()
        if new:
            path.append((begin, row))
        depth += [begin for begin, _ in path]
        owner += [branch for _, branch in path]
        pieces.append(len(path))
    depth, owner, row = np.array(depth), np.array(owner), np.arange(len(whole)).repeat(pieces)
    above = np.flatnonzero((owner != row) & (added[row] > 0))
    before = Runs(first_node[owner[above]], np.diff(depth)[above])
    parent = np.full(len(whole), -1)
    parent[row[above]] = before.ends - 1  # of several pieces the last one's stays

    # What rows score, cut where a path goes on to another branch; rows stand one behind the other as in `whole`.
    row_starts, place = whole.lengths.cumsum() - whole.lengths, np.empty(len(rows.prompts), dtype=np.int64)
    place[whole.rows] = np.arange(len(whole))
    runs = rows.runs()
    scoring = place[_last(rows.offsets, runs.starts)]
    order = np.argsort(scoring, kind="stable")
    scoring, runs = scoring[order], runs[order]
    runs = runs.moved(-rows.offsets[whole.rows[scoring]])
    flat, runs = runs.moved(offsets[scoring]), runs.moved(row_starts[scoring])
    depth += row_starts[row]
    starts = np.union1d(depth, runs.starts)
    run = _last(runs.starts, starts)
    counts = np.minimum(runs.ends[run], np.append(starts[1:], runs.ends[-1])) - starts
    some = (run >= 0) & (counts > 0)
    starts, counts, scoring_piece = starts[some], counts[some], scoring[run[some]]
    piece = _last(depth, starts)
    scored = Runs(first[owner[piece]] + starts - depth[piece], counts)
    pairs = scored.union()

    # A pair follows the node before it: of a branch's first token the parent.
    branch = _last(first, pairs.starts)
    within = pairs.starts - first[branch]
    node = first_node[branch] + within
    follows = Runs(
        np.stack([np.where(within > 0, node - 1, parent[branch]), node], axis=1).ravel(),
        np.stack([np.ones_like(node), pairs.counts - 1], axis=1).ravel(),
    )
    positions = follows.union()

    # Each part's, counted from its own first node, position and pair.
    adds, tokens, nodes = np.flatnonzero(added), offsets + shared, first_node[edges]
    of_pairs, of_positions = np.searchsorted(pairs.starts, first[edges]), np.searchsorted(positions.starts, nodes)
    before_pairs, before_positions = (
        np.append(0, x.counts.cumsum())[bounds] for x, bounds in ((pairs, of_pairs), (positions, of_positions))
    )

    def split(starts, counts, bounds, base):
        runs = Runs(starts - base[:-1].repeat(np.diff(bounds)), counts)
        return [runs[a:b] for a, b in itertools.pairwise(bounds.tolist())]

    return list(
        zip(
            split(tokens, computed, edges, 0 * edges),
            split(first_node[adds], shared[adds], np.searchsorted(adds, edges), nodes),
            split(before.starts, before.counts, np.searchsorted(row[above], edges), nodes),
            split(positions.starts, positions.counts, of_positions, nodes),
            split(positions.place(follows.starts), follows.counts, 2 * of_pairs, before_positions),
            split(tokens[branch] + within, pairs.counts, of_pairs, 0 * edges),
            split(flat.starts, flat.counts, np.searchsorted(scoring, edges), 0 * edges),
            split(pairs.place(scored.starts), counts, np.searchsorted(scoring_piece, edges), before_pairs),
            strict=True,
        )
    )


def grow(outline: tuple[Runs, ...]) -> Tree:
    """The tree of one of `outlines`."""
    source, starts, before, *others = outline
    nodes, ends = before.numbers(), starts.counts.cumsum()
    parts = [nodes[a:b] for a, b in zip((ends - starts.counts).tolist(), ends.tolist(), strict=True)]
    return Tree(source.numbers(), starts.starts, parts, *(runs.numbers() for runs in others))


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


def sees(tree: Tree, queries: Sequence[int] | np.ndarray, keys: Sequence[int] | np.ndarray) -> np.ndarray:
    """(queries, keys) bool: each query sees its ancestors and itself."""
    queries, keys = np.asarray(queries, dtype=np.int64)[:, None], np.asarray(keys, dtype=np.int64)[None, :]
    return (keys <= queries) & (queries < tree.end[keys])
