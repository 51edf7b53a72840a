"""Attention over a prefix tree (algorithm/tree.py) as one sequence, by way of transformers' registry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from gpg_verl.algorithm.tree import Tree, blocks, sees

ATTENTION = "gpg_prefix_tree"

# What one more call of attention costs, in pairs of a query and a key: on a CPU 0.1 ms, on a GPU a few launches.
ATTENTION_CALL_COST = {"cpu": 1 << 11, "cuda": 1 << 18}

# Arguments of attention functions that change who sees whom or by how much; here they have no effect.
UNSUPPORTED_KWARGS = ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask", "chunk_size")


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
    calls: how often it was called.
    refused: why what was asked of attention cannot be; raised behind the forward pass, which FSDP needs whole.
    """

    def __init__(self):
        self.layout: Layout | None = None
        self.calls = 0
        self.refused = ""

    def register(self) -> None:
        """From now on it is this object that attention `ATTENTION` is computed by."""
        AttentionInterface.register(ATTENTION, self.attend)

    def raise_if_refused(self) -> None:
        if self.refused:
            reason, self.refused = self.refused, ""
            raise NotExact(reason)

    def attend(self, module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        """In the interface of transformers' registry: (1, heads, nodes, d) each."""
        self.calls += 1
        layout = self.layout
        asked = [name for name in UNSUPPORTED_KWARGS if kwargs.get(name) is not None]
        if asked or dropout:
            self.refused = f"its attention takes {', '.join(asked) or 'dropout'}"
        if attention_mask is not None or len(query) != 1 or sum(layout.queries) != query.shape[2]:
            self.refused = "it changes the sequence or its mask before attention"
        if self.refused:
            return query.transpose(1, 2).contiguous(), None
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
