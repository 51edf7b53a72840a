"""Attention over a prefix tree (algorithm/tree.py) as one sequence, by way of transformers' registry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
    sliding_window_overlay,
)

from gpg_verl.algorithm.tree import Tree, blocks, sees

ATTENTION = "gpg_prefix_tree"

# What one more call of attention costs, in pairs of a query and a key: on a CPU 0.1 ms, on a GPU a few launches.
ATTENTION_CALL_COST = {"cpu": 1 << 11, "cuda": 1 << 18}

# Arguments of attention functions that change neither who sees whom nor by how much; any other is refused.
HARMLESS_KWARGS = {
    "position_ids",
    "cache_position",
    "use_cache",
    "deterministic",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
}


class NotExact(RuntimeError):
    """What a model asks of attention is not what a tree's attention does."""


@dataclass(frozen=True)
class Layout:
    """The blocks of a tree (`tree.blocks`) for attention; consecutive: queries are split, keys gathered once.

    queries, sizes: of each block, its queries and its keys.
    keys: (Σ sizes,) the node of each key, None where every block sees just itself.
    masks: of each block (queries, keys) bool, None for plain causal attention.
    """

    queries: list[int]
    sizes: list[int]
    keys: torch.Tensor | None
    masks: list[torch.Tensor | None]

    @classmethod
    def of(cls, tree: Tree, device: torch.device) -> Layout:
        queries, sizes, keys, masks = [], [], [], []
        for block in blocks(tree, ATTENTION_CALL_COST.get(device.type, ATTENTION_CALL_COST["cuda"])):
            own = np.arange(block.start, block.end)
            seen = np.concatenate([block.before, own])
            queries.append(len(own))
            sizes.append(len(seen))
            keys.append(seen)
            mask = None
            if not block.chain:
                mask = torch.from_numpy(sees(tree, own, seen)).to(device)
            elif len(block.before) and device.type == "cuda":
                mask = causal_lower_right(len(own), len(seen))  # for kernels that need no mask in memory
            elif len(block.before):
                mask = torch.ones(len(own), len(seen), dtype=torch.bool, device=device).tril(len(block.before))
            masks.append(mask)
        together = None if queries == sizes else torch.from_numpy(np.concatenate(keys)).to(device)
        return cls(queries, sizes, together, masks)


class TreeAttention:
    """What transformers' registry calls during an update, for the tree of the pass that is being computed, its backward
    included: checkpointed layers are computed again in it, on a GPU in a thread of autograd's, where context variables
    and thread-locals are lost.

    layout: of that tree, None outside of an update.
    positions: (1, nodes) position ids of its tokens.
    calls: how often it was called.
    mask: what a mask of the model adds to the causal one; "" where nothing.
    refused: why what was asked of attention cannot be; "" where it can. Raised behind the backward pass, on all ranks
        (`Passes.refused`): FSDP needs both whole.
    """

    def __init__(self):
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
        if attention_mask is not None or len(query) != 1 or sum(layout.queries) != query.shape[2]:
            self.refused = "it changes the sequence or its mask before attention"
            if self.mask:
                self.refused = f"its mask is not only causal ({self.mask})"
        if self.refused:  # what follows is of no use, but FSDP's ranks need each gradient
            unused = 0 * (query.sum() + key.sum() + value.sum())
            return unused + value.new_zeros(len(query), query.shape[2], query.shape[1], value.shape[3]), None
        if layout.keys is not None:
            key, value = key[:, :, layout.keys], value[:, :, layout.keys]
        repeat = query.shape[1] // key.shape[1]
        parts = []
        for q, k, v, mask in zip(
            query.split(layout.queries, 2), key.split(layout.sizes, 2), value.split(layout.sizes, 2), layout.masks,
            strict=True,
        ):  # fmt: skip
            if repeat > 1:
                k, v = (x.repeat_interleave(repeat, dim=1) for x in (k, v))
            parts.append(
                torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling
                )
            )
        return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None

    def attend_in_qwen2_vl(self, query_states, key_states, value_states, attention_mask, query_length, **kwargs):
        """In that of veRL's Qwen2-VL, which with remove-padding calls a function of its own: (1, nodes, heads, d)."""
        query, key, value = (x.transpose(1, 2) for x in (query_states, key_states, value_states))
        others = {"sliding_window": kwargs.get("sliding_window"), "softcap": kwargs.get("softcap")}
        scaling, dropout = kwargs.get("softmax_scale"), kwargs.get("dropout", 0.0)
        return self.attend(None, query, key, value, attention_mask, scaling, dropout, **others)[0]
