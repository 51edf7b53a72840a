"""Attention over a prefix tree (algorithm/tree.py) as one sequence, by way of transformers' registry.

On a GPU it is one call of flash attention a layer: each branch is a sequence of queries whose keys are its ancestors
and itself, causal with the last query at the last key. Elsewhere, in fp32 and where a run is deterministic, branches go
one block after the other through torch's scaled_dot_product_attention.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
    sliding_window_overlay,
)
from transformers.modeling_flash_attention_utils import (
    flash_attn_supports_top_left_mask,
    lazy_import_flash_attention,
)

from gpg_verl.algorithm.tree import Tree, attention_mask, blocks

ATTENTION = "gpg_prefix_tree"

# What one more call of attention costs, in pairs of a query and a key: on a CPU 0.1 ms, on a GPU a few launches.
ATTENTION_CALL_COST = {"cpu": 1 << 11, "cuda": 1 << 18}

# Arguments of attention functions that change neither who sees whom nor by how much; any other is refused.
HARMLESS_KWARGS = {
    *("position_ids", "cache_position", "use_cache", "deterministic"),
    *("output_attentions", "output_hidden_states", "output_router_logits"),
}


class NotExact(RuntimeError):
    """What a model asks of attention is not what a tree's attention does."""


class _Gather(torch.autograd.Function):
    """x[index] along the first axis. The gradients of copies are added in fp32 at least, and without sorting."""

    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        ctx.length = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, gradient):
        (index,) = ctx.saved_tensors
        precise = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.new_zeros((ctx.length, *gradient.shape[1:]), dtype=precise)
        return total.index_add_(0, index, gradient.to(precise)).to(gradient.dtype), None


def gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return _Gather.apply(x, index)


# ---- one call of flash attention


def branch_sequences(parts: Iterable[tuple[int, int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A tree's branches (or blocks), of (first node, node behind the last, nodes before) each, as sequences: (Σ keys,)
    the node of each key, one part after the other; (parts + 1,) each, how many queries and keys are before each part.
    """
    keys, queries, sizes = [], [0], [0]
    for start, end, before in parts:
        keys += [before, np.arange(start, end)]
        queries.append(end - start)
        sizes.append(len(before) + end - start)
    return np.concatenate(keys), np.cumsum(queries), np.cumsum(sizes)


def supports_flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether flash attention computes these, (1, heads, nodes, d) each: half precision, on a GPU that has it, with
    heads of at most 256 that are the same for all. What it adds up in any order is not for a deterministic run.
    """
    if not query.is_cuda or query.shape[-1] % 8 or torch.are_deterministic_algorithms_enabled():
        return False
    grouped = query.shape[1] != key.shape[1]
    return torch.backends.cuda.can_use_flash_attention(
        torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, True, grouped)
    )


def torchs_flash(query, key, value, layout: Layout, scaling: float | None) -> torch.Tensor:
    """What every torch wheel for CUDA has: (tokens, heads, d) each."""
    lengths = (layout.cu_seqlens_q, layout.cu_seqlens_k, layout.max_seqlen_q, layout.max_seqlen_k)
    return torch.ops.aten._flash_attention_forward(query, key, value, *lengths, 0.0, True, False, scale=scaling)[0]


def flash_of(implementation: str) -> Callable:
    """The flash attention that a model was loaded with (flash-attn's, or one from the hub), else torch's."""
    if "flash" not in implementation or flash_attn_supports_top_left_mask():  # flash-attn before 2.1 aligns otherwise
        return torchs_flash
    (_, function, *_), supported = lazy_import_flash_attention(implementation)

    def flash(query, key, value, layout: Layout, scaling: float | None) -> torch.Tensor:
        most = (layout.max_seqlen_q, layout.max_seqlen_k)
        more = supported(*most, is_causal=True, softmax_scale=scaling, max_seqlen_q=most[0], max_seqlen_k=most[1])
        lengths = {"cu_seqlens_q": layout.cu_seqlens_q, "cu_seqlens_k": layout.cu_seqlens_k}
        result = function(query, key, value, **lengths, **more)
        return result[0] if isinstance(result, tuple) else result

    return flash


@dataclass(frozen=True)
class Layout:
    """A tree as attention takes it.

    keys: (Σ keys,) as `branch_sequences` has them; None where each branch sees just itself.
    cu_seqlens_q, cu_seqlens_k: (branches + 1,) int32, how many queries and keys are before each branch.
    max_seqlen_q, max_seqlen_k: of the branch with most.
    """

    tree: Tree
    keys: torch.Tensor | None
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int

    @classmethod
    def of(cls, tree: Tree, sequences: list[np.ndarray], on_device: list[torch.Tensor]) -> Layout:
        """sequences: of `branch_sequences`; on_device: the same, where attention is computed."""
        (nodes, queries, sizes), (keys, cu_seqlens_q, cu_seqlens_k) = sequences, on_device
        most = (int(np.diff(queries).max()), int(np.diff(sizes).max()))
        gathered = keys if len(nodes) > len(tree) else None
        return cls(tree, gathered, cu_seqlens_q.int(), cu_seqlens_k.int(), *most)

    @functools.cached_property
    def blocks(self) -> Blocks:
        return Blocks.of(self.tree, self.cu_seqlens_q.device)


# ---- block by block


@dataclass(frozen=True)
class Blocks:
    """The blocks of a tree (`tree.blocks`), one after the other: queries are split, keys gathered once.

    queries, sizes: of each block, its queries and its keys.
    keys: (Σ sizes,) the node of each key, None where every block sees just itself.
    masks: of each block (queries, keys) bool, None for plain causal attention.
    """

    queries: list[int]
    sizes: list[int]
    keys: torch.Tensor | None
    masks: list[torch.Tensor | None]

    @classmethod
    def of(cls, tree: Tree, device: torch.device) -> Blocks:
        found = blocks(tree, ATTENTION_CALL_COST.get(device.type, ATTENTION_CALL_COST["cuda"]))
        keys, queries, sizes = branch_sequences((block.start, block.end, block.before) for block in found)
        masks: list[torch.Tensor | None] = [None] * len(found)
        for i, (block, seen) in enumerate(zip(found, np.split(keys, sizes[1:-1]), strict=True)):
            if not block.chain or len(block.before):
                masks[i] = torch.from_numpy(attention_mask(tree, np.arange(block.start, block.end), seen)).to(device)
        gathered = torch.from_numpy(keys).to(device) if len(keys) > len(tree) else None
        return cls(np.diff(queries).tolist(), np.diff(sizes).tolist(), gathered, masks)

    def attend(self, query, key, value, scaling: float | None) -> torch.Tensor:
        """(1, heads, nodes, d) each."""
        if self.keys is not None:
            key, value = key[:, :, self.keys], value[:, :, self.keys]
        repeat = query.shape[1] // key.shape[1]
        queries, keys, values = query.split(self.queries, 2), key.split(self.sizes, 2), value.split(self.sizes, 2)
        parts = []
        for q, k, v, mask in zip(queries, keys, values, self.masks, strict=True):
            if repeat > 1:
                k, v = (x.repeat_interleave(repeat, dim=1) for x in (k, v))
            more = {"attn_mask": mask, "is_causal": mask is None, "scale": scaling}
            parts.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, **more))
        return torch.cat(parts, dim=2)


# ---- what transformers calls


class TreeAttention:
    """What transformers' registry calls during an update, for the tree of the pass that is being computed, its backward
    included: checkpointed layers are computed again in it, on a GPU in a thread of autograd's, where context variables
    and thread-locals are lost.

    flash: computes attention where `supports_flash` lets it; of `flash_of`.
    layout: of that tree, None outside of an update.
    positions: (1, nodes) position ids of its tokens.
    calls: how often it was called.
    mask: what a mask of the model adds to the causal one; "" where nothing.
    refused: why what was asked of attention cannot be; "" where it can. Raised behind the backward pass, on all ranks
        (`Passes.refused`): FSDP needs both whole.
    """

    def __init__(self, flash: Callable = torchs_flash):
        self.flash = flash
        self.layout: Layout | None = None
        self.positions: torch.Tensor | None = None
        self.calls = 0
        self.refused = self.mask = ""

    def register(self) -> None:
        """From now on it is this object that attention `ATTENTION` is computed by."""
        AttentionInterface.register(ATTENTION, self.attend)
        AttentionMaskInterface.register(ATTENTION, self.see_mask)
        self.refused = self.mask = ""

    def see_mask(self, *, mask_function, attention_mask=None, **_) -> torch.Tensor | None:
        """In the interface of transformers' AttentionMaskInterface: what a model composes as its mask.

        None for a causal one, with the term by which transformers takes a tree's position ids for packed rows, or a
        window that no row is longer than. Another goes to the layers that use it, where `attend` refuses it.
        """
        terms = [mask_function]
        for term in terms:
            code, value = getattr(term, "__code__", None), (getattr(term, "__closure__", None) or [None])[0]
            if code is and_masks().__code__:
                terms.extend(value.cell_contents)
            elif code is packed_sequence_mask_function(None).__code__:
                expected = find_packed_sequence_indices(self.positions)
                if expected is None or not torch.equal(value.cell_contents, expected):
                    self.mask = "packed_sequence_mask_function"
                    return torch.zeros(1, 1, 1, 1)
            elif code is sliding_window_overlay(0).__code__ and value.cell_contents > self.positions.max():
                continue
            elif term is not causal_mask_function:
                self.mask = getattr(term, "__qualname__", type(term).__name__).split(".<locals>")[0]
                return torch.zeros(1, 1, 1, 1)
        return attention_mask

    def attend(self, module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        """In the interface of transformers' registry: (1, heads, nodes, d) each."""
        self.calls += 1
        layout = self.layout
        causal = kwargs.pop("is_causal", None)
        asked = [name for name, value in kwargs.items() if value is not None and name not in HARMLESS_KWARGS]
        if asked or dropout:
            self.refused = f"its attention takes {', '.join(asked) or 'dropout'}"
        if not (getattr(module, "is_causal", True) if causal is None else causal):
            self.refused = "its attention is not causal"
        if attention_mask is not None or len(query) != 1 or len(layout.tree) != query.shape[2]:
            changed = "it changes the sequence or its mask before attention"
            self.refused = f"its mask is not only causal ({self.mask})" if self.mask else changed
        if self.refused:  # what follows is of no use, but FSDP's ranks need each gradient
            unused = 0 * (query.sum() + key.sum() + value.sum())
            return unused + value.new_zeros(len(query), query.shape[2], query.shape[1], value.shape[3]), None
        kind = query.device.type
        if torch.is_autocast_enabled(kind):  # as autocast has it for torch's attention; a model may rotate in fp32
            query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
        if not supports_flash(query, key, value):
            return layout.blocks.attend(query, key, value, scaling).transpose(1, 2).contiguous(), None
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        if layout.keys is not None:
            k, v = gather(k, layout.keys), gather(v, layout.keys)
        return self.flash(q, k, v, layout, scaling).unsqueeze(0), None

    def attend_in_qwen2_vl(self, query_states, key_states, value_states, attention_mask, query_length, **kwargs):
        """In that of veRL's Qwen2-VL, which with remove-padding calls a function of its own: (1, nodes, heads, d)."""
        query, key, value = (x.transpose(1, 2) for x in (query_states, key_states, value_states))
        others = {"sliding_window": kwargs.get("sliding_window"), "softcap": kwargs.get("softcap")}
        scaling, dropout = kwargs.get("softmax_scale"), kwargs.get("dropout", 0.0)
        return self.attend(None, query, key, value, attention_mask, scaling, dropout, **others)[0]
