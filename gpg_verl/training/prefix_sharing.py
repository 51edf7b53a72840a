"""An update's forward passes in veRL's FSDP engine: over prefix trees (algorithm/tree.py), or row by row where trees
are not exact; either way with the vocabulary only where a token is scored. During an update it changes

- `prepare_micro_batches`, for trees: rows in their tree's order, filled up to the budget by the tokens computed,
- `prepare_model_inputs`: for trees their tokens, position ids and images, as one sequence, with attention by way of
  transformers' registry; what the vocabulary's layer is given are the positions that score a token,
- `prepare_model_outputs`: log-probs and entropy back in the shape of rows, so that the loss and all that is measured
  from it see rows as ever. The gradient sums over the rows that share a token on its way back.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, PreTrainedModel
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from gpg_verl.algorithm.tree import Rows, Tree, blocks, branches, cut_evenly, grow, outlines, sees
from gpg_verl.compat.seams import replaced, seam

ATTENTION = "gpg_prefix_tree"
OUTLINE = "gpg_outline"  # of a micro-batch's tree, under this name in its TensorDict

# What one more call of attention costs, in pairs of a query and a key: on a CPU 0.1 ms, on a GPU a few launches.
OVERHEAD = {"cpu": 1 << 11, "cuda": 1 << 18}

# From so many tokens on a longer pass is not faster, and only holds more. On a GPU that is for the budget to say.
ENOUGH = {"cpu": 2048}

# Arguments of attention functions that change who sees whom or by how much; here they have no effect.
UNKNOWN = ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask", "chunk_size")


class NotExact(RuntimeError):
    """What a model asks of attention is not what a tree's attention does."""


# ---- attention


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
        for block in blocks(tree, OVERHEAD.get(device.type, OVERHEAD["cuda"])):
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


# The layout of the pass that is being computed, its backward included: with gradient checkpointing that computes layers
# again, maybe in a thread of autograd's.
_layout: Layout | None = None
_calls = 0
_refused = ""  # why what was asked of attention cannot be; raised behind the forward pass, which FSDP needs whole


def attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Attention over a tree as one sequence, in the interface of transformers' registry: (1, heads, nodes, d) each."""
    global _calls, _refused
    _calls += 1
    asked = [name for name in UNKNOWN if kwargs.get(name) is not None]
    if asked or dropout:
        _refused = f"its attention takes {', '.join(asked) or 'dropout'}"
    if attention_mask is not None or len(query) != 1 or sum(_layout.queries) != query.shape[2]:
        _refused = "it changes the sequence or its mask before attention"
    if _refused:
        return query.transpose(1, 2).contiguous(), None
    if _layout.keys is not None:
        key, value = key[:, :, _layout.keys], value[:, :, _layout.keys]
    repeat = query.shape[1] // key.shape[1]
    parts = []
    for q, k, v, mask in zip(
        query.split(_layout.queries, 2), key.split(_layout.sizes, 2), value.split(_layout.sizes, 2), _layout.masks,
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


AttentionInterface.register(ATTENTION, attend)


def _attend_in_qwen2_vl(query_states, key_states, value_states, attention_mask, query_length, **kwargs):
    """veRL's Qwen2-VL with remove-padding calls flash attention by a function of its own: (1, nodes, heads, d) each."""
    query, key, value = (x.transpose(1, 2) for x in (query_states, key_states, value_states))
    others = {"sliding_window": kwargs.get("sliding_window"), "softcap": kwargs.get("softcap")}
    return attend(
        None, query, key, value, attention_mask, kwargs.get("softmax_scale"), kwargs.get("dropout", 0.0), **others
    )[0]


# ---- log-probs


class _LogProbs(torch.autograd.Function):
    """log softmax(logits)[at, token], for pairs that differ. The gradient is written over the logits with `in_place`,
    where nobody else needs them in the backward.
    """

    @staticmethod
    def forward(ctx, logits, at, token, in_place):
        total = torch.cat([_precise(part).logsumexp(-1) for part in logits.split(1024)])
        log_probs = _precise(logits[at, token]) - total[at]
        ctx.save_for_backward(logits, total, log_probs, at, token)
        ctx.in_place = in_place
        return log_probs

    @staticmethod
    def backward(ctx, gradient):
        logits, total, log_probs, at, token = ctx.saved_tensors
        passing = torch.zeros_like(total).index_add(0, at, gradient)
        result = logits if ctx.in_place else torch.empty_like(logits)
        for out, part, whole, weight in zip(*(x.split(1024) for x in (result, logits, total, passing)), strict=True):
            out.copy_((_precise(part) - whole[:, None]).exp_().mul_(-weight[:, None]))
        result[at, token] = (gradient - log_probs.exp() * passing[at]).to(result.dtype)
        return result, None, None, None


def _precise(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


# ---- images

KINDS = (
    ("pixel_values", "image_grid_thw", "image_token_id"),
    ("pixel_values_videos", "video_grid_thw", "video_token_id"),
)


@dataclass(frozen=True)
class Images:
    """What rows show, images and videos, as items.

    item: (tokens,) number of the item that the token is a part of, 0 for text; items that look alike have one.
    first: (tokens,) bool, its item's first token.
    kinds: (tokens,) the item's place in KINDS.
    shown: by number, an item's pixels and grid.
    """

    item: np.ndarray
    first: np.ndarray
    kinds: np.ndarray
    shown: dict[int, tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, data: TensorDict, config) -> Images | None:
        """None where no row has any. For rows that `why_apart` lets pass."""
        rows = _shown(data)
        if not any(rows):
            return None
        ids, offsets = data["input_ids"].values().cpu().numpy(), data["input_ids"].offsets().tolist()
        item, kinds = np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.int64)
        first, shown, alike = np.zeros(len(ids), dtype=bool), {}, {}
        merged = config.vision_config.spatial_merge_size**2
        for row, start, end in zip(rows, offsets, offsets[1:], strict=False):
            for kind, (pixels, grid, token) in enumerate(KINDS):
                if pixels not in row:
                    continue
                sizes = row[grid].prod(-1).tolist()
                places = start + np.flatnonzero(ids[start:end] == getattr(config, token))
                parts, done = row[pixels].split(sizes), 0
                for part, shape, size in zip(parts, row[grid], sizes, strict=True):
                    number = _number_of(part, (kind, *shape.tolist()), alike)
                    shown.setdefault(number, (part, shape))
                    own, done = places[done : done + size // merged], done + size // merged
                    item[own], kinds[own], first[own[0]] = number, kind, True
        return cls(item, first, kinds, shown)

    def of_tree(self, tree: Tree, device) -> dict[str, torch.Tensor]:
        """The model's inputs for the items of a tree, in the order of its tokens."""
        inputs = {}
        begins = tree.source[self.first[tree.source]]
        for kind, (pixels, grid, _) in enumerate(KINDS):
            items = [self.shown[number] for number in self.item[begins[self.kinds[begins] == kind]].tolist()]
            if items:
                inputs[pixels] = torch.cat([part for part, _ in items]).to(device)
                inputs[grid] = torch.stack([shape for _, shape in items]).to(device)
        return inputs


def _shown(data: TensorDict) -> list[dict]:
    """What the rows bring beside their tokens; [] where nothing is said of any."""
    rows = data.get("multi_modal_inputs", None)
    rows = [] if rows is None else [getattr(row, "data", row) or {} for row in rows]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def why_apart(data: TensorDict, config) -> str | None:
    """Why these rows must be computed one by one; None where trees are known to be exact for what they show."""
    rows = _shown(data)
    known = {name for pixels, grid, _ in KINDS for name in (pixels, grid)}
    known |= {"second_per_grid_ts", "images_seqlens"}  # for position ids and veRL's estimate of FLOPs
    others = {name for row in rows for name in row} - known
    if others:
        return f"rows bring {', '.join(sorted(others))}, and which tokens that is for is not known"
    for i, row in enumerate(rows):
        for pixels, grid, token in KINDS:
            if pixels in row:
                shown = int((data["input_ids"][i] == getattr(config, token)).sum())
                if shown * config.vision_config.spatial_merge_size**2 != int(row[grid].prod(-1).sum()):
                    return f"a row's {pixels} are not for as many tokens as it has of them"
    return None


def _number_of(pixels: torch.Tensor, shape: tuple, alike: dict) -> int:
    """The number of an item, from 1: that of the one before that looks just like it. The sum tells most apart."""
    candidates = alike.setdefault((*shape, float(pixels.double().sum())), [])
    for other, number in candidates:
        if other.data_ptr() == pixels.data_ptr() or torch.equal(other, pixels):
            return number
    number = alike["count"] = alike.get("count", 0) + 1
    candidates.append((pixels, number))
    return number


# ---- the engine


@dataclass(frozen=True)
class Scored:
    """What a pass scores: positions (sequence, place) of what the model is given; the rest as in `Tree`."""

    positions: tuple[torch.Tensor, torch.Tensor]
    at: torch.Tensor
    token: torch.Tensor
    flat: torch.Tensor
    pair: torch.Tensor


class Passes:
    """The forward passes of an update, for one FSDP engine.

    counts: what was computed since it was last cleared: tokens_computed, tokens_shared (of rows, not computed as
        another row has them), positions_scored, and `visible`, the pairs of a query and a key that it sees.
    """

    def __init__(self, engine: FSDPEngineWithLMHead, entropy_has_gradient: bool):
        self.engine, self.entropy_has_gradient = engine, entropy_has_gradient
        self.model = next(m for m in engine.module.modules() if isinstance(m, PreTrainedModel))
        self.head = self.model.get_output_embeddings()
        self.config = self.model.config.get_text_config()
        self.counts: Counter[str] = Counter()
        self.active = False
        self.scored: Scored | None = None

    @contextlib.contextmanager
    def during_update(self, trees: bool):
        """While it lasts, the engine's passes are over trees or, as veRL's, over rows; both score what counts only."""
        global _layout
        engine = self.engine
        inputs = seam(type(engine), "prepare_model_inputs", ("self", "micro_batch"))
        seam(
            type(engine),
            "prepare_model_outputs",
            ("self", "output", "output_args", "micro_batch", "logits_processor_func"),
        )
        with contextlib.ExitStack() as undo:
            hook = self.head.register_forward_pre_hook(self._only_scored)
            undo.callback(hook.remove)
            engine.prepare_model_outputs = self._outputs
            undo.callback(delattr, engine, "prepare_model_outputs")
            undo.callback(delattr, engine, "prepare_model_inputs")
            engine.prepare_model_inputs = self._tree_inputs if trees else self._row_inputs(inputs)
            if trees:
                undo.enter_context(replaced(self.config, "_attn_implementation", ATTENTION))
                seam(transformer_impl, "prepare_micro_batches", ("data", "dp_group"))
                undo.enter_context(replaced(transformer_impl, "prepare_micro_batches", self._micro_batches))
                if self.model.config.model_type in ("qwen2_vl", "qwen2_5_vl"):
                    from verl.models.transformers import qwen2_vl  # seconds that other models need not wait

                    seam(
                        qwen2_vl,
                        "_custom_flash_attention_forward",
                        ("query_states", "key_states", "value_states", "attention_mask", "query_length"),
                    )
                    undo.enter_context(replaced(qwen2_vl, "_custom_flash_attention_forward", _attend_in_qwen2_vl))
            self.active = True
            try:
                yield
            finally:
                self.active, self.scored, _layout = False, None, None

    # ---- micro-batches

    def _micro_batches(self, data: TensorDict, dp_group=None, **_):
        """Parts of the rows' tree, equally many on each rank."""
        images = Images.of(data, self.model.config)
        rows, budget = rows_of(data), self._budget(data)
        whole = branches(symbols_of(data, images), rows)
        enough = ENOUGH.get(get_device_name(), budget)
        parts = cut_evenly(whole, budget, math.ceil(int(whole.computed().sum()) / enough))
        count = torch.tensor(len(parts), device=get_device_id())
        torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MAX, group=dp_group)
        if len(parts) < count:
            parts = cut_evenly(whole, budget, int(count))
        lengths = np.diff(rows.offsets)[whole.rows]
        offsets = lengths.cumsum() - lengths
        for start, end in parts:
            offsets[start:end] -= offsets[start]
        result = [
            _select(data, whole.rows[start:end].tolist(), outline)
            for (start, end), outline in zip(parts, outlines(whole, parts, rows, offsets), strict=True)
        ]
        while len(result) < int(count):  # this rank has no row left where another has
            none = _select(data, [0], None)
            for name in ("response_mask", "advantages"):
                if name in none:
                    none[name] = none[name] * 0
            result.append(none)
        return result, None

    def _budget(self, data: TensorDict) -> int:
        """Tokens that a pass may have: no more than the largest of veRL's own passes over these rows."""
        if tu.get_non_tensor_data(data, "use_dynamic_bsz", default=True):
            return int(data["max_token_len_per_gpu"])
        lengths, size = data["input_ids"].offsets().diff(), max(1, int(data["micro_batch_size_per_gpu"]))
        longest = int(lengths.max())
        if not tu.get_non_tensor_data(data, "use_remove_padding", default=True):
            return size * longest
        # Packed, a pass of veRL's is as long as its rows together: the largest has the longest row, and the mean.
        return max(longest, int(lengths.sum()) // math.ceil(len(lengths) / size))

    # ---- one pass

    def _tree_inputs(self, micro_batch: TensorDict):
        global _layout
        outline = tu.get_non_tensor_data(micro_batch, OUTLINE, default=None)
        ids, positions = micro_batch["input_ids"].values(), micro_batch["position_ids"].values()
        images = None
        if outline is not None:
            tree, images = grow(outline), Images.of(micro_batch, self.model.config)
            self._count(len(tree), len(ids) - len(tree), len(tree.positions), tree.visible())
        else:  # a pass for the other ranks' sake: one token, and nothing scored
            zero, last = np.zeros(1, dtype=np.int64), np.array([len(ids) - 1])
            tree = Tree(last, zero, [zero[:0]], zero, zero, last, zero[:0], zero[:0])

        def there(numbers):
            return torch.from_numpy(numbers).to(ids.device)

        source, _layout = there(tree.source), Layout.of(tree, ids.device)
        at, token, flat, pair, places = map(there, (tree.at, tree.token, tree.flat, tree.pair, tree.positions))
        self.scored = Scored((torch.zeros_like(places), places), at, token, flat, pair)
        return {
            "input_ids": ids[source].unsqueeze(0),
            "attention_mask": None,
            "position_ids": positions[..., source].unsqueeze(-2),
            **(images.of_tree(tree, ids.device) if images else {}),
        }, {}

    def _row_inputs(self, verls):
        def inputs(micro_batch: TensorDict):
            model_inputs, output_args = verls(self.engine, micro_batch)
            rows, ids = rows_of(micro_batch), micro_batch["input_ids"].values()
            flat, lengths = rows.runs().numbers(), np.diff(rows.offsets)
            self._count(len(ids), 0, len(flat), int((lengths * (lengths + 1) // 2).sum()))
            token = flat if len(flat) else np.ones(1, dtype=np.int64)  # padding alone: one, for no row
            positions = (np.zeros_like(token), token - 1)  # a token is scored by the position before it
            if not tu.get_non_tensor_data(micro_batch, "use_remove_padding", default=True):
                row = np.searchsorted(rows.offsets, token, side="right") - 1
                positions = (row, token - 1 - rows.offsets[row])
            of_row, of_column, at, token, flat = (
                torch.from_numpy(x).to(ids.device) for x in (*positions, np.arange(len(token)), token, flat)
            )
            self.scored = Scored((of_row, of_column), at, token, flat, at[: len(flat)])
            return model_inputs, output_args

        return inputs

    def _count(self, computed: int, shared: int, scored: int, visible: int) -> None:
        self.counts.update(
            {"tokens_computed": computed, "tokens_shared": shared, "positions_scored": scored, "visible": visible}
        )

    def _only_scored(self, module, args):
        """What the vocabulary's layer is given: hidden states of the positions that score a token, (1, K, hidden)."""
        hidden, *others = args
        return (hidden[self.scored.positions].unsqueeze(0), *others)

    def _outputs(self, output, output_args, micro_batch: TensorDict, logits_processor_func):
        global _refused
        if _refused:
            reason, _refused = _refused, ""
            raise NotExact(reason)
        scored, ids = self.scored, micro_batch["input_ids"]
        logits = output.logits.squeeze(0)
        if hasattr(logits, "full_tensor"):
            logits = logits.full_tensor()
        if micro_batch["temperature"] != 1.0:
            logits = logits / max(micro_batch["temperature"], 1e-8)
        log_probs = _LogProbs.apply(logits, scored.at, ids.values()[scored.token], not self.entropy_has_gradient)

        def in_rows(values):
            # veRL has a token's number at the place before the token.
            rows = values.new_zeros(len(ids.values())).index_put((scored.flat - 1,), values)
            return torch.nested.nested_tensor_from_jagged(rows, ids.offsets())

        result = {"log_probs": in_rows(log_probs[scored.pair])}
        if tu.get_non_tensor_data(micro_batch, "calculate_entropy", default=False):
            result["entropy"] = in_rows(self._entropy(logits)[scored.at[scored.pair]])
        return result

    def _entropy(self, logits: torch.Tensor) -> torch.Tensor:
        config, compute = self.engine.engine_config, self.engine.compute_entropy_from_logits
        more = {}
        if config.entropy_from_logits_with_chunking:
            more["chunk_size"] = config.entropy_from_logits_chunk_size
        if config.entropy_checkpointing and self.entropy_has_gradient:
            return torch.utils.checkpoint.checkpoint(compute, logits, **more, use_reentrant=False)
        return compute(logits, **more)


def rows_of(data: TensorDict) -> Rows:
    """The rows of veRL's batch, as a tree takes them."""
    offsets = data["input_ids"].offsets().cpu().numpy()
    prompts = data["prompts"].offsets().diff().cpu().numpy()
    written = data["response_mask"].values().cpu().numpy().astype(bool)
    if written.all():
        return Rows(offsets, prompts)
    mask = np.zeros(offsets[-1], dtype=bool)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    mask[place >= np.repeat(prompts, np.diff(offsets))] = written
    return Rows(offsets, prompts, mask)


def symbols_of(data: TensorDict, images: Images | None) -> np.ndarray:
    """What makes two tokens of a batch the same: the token, the image that it is a part of, and its position ids where
    they do not just count.
    """
    ids, positions = data["input_ids"].values().cpu().numpy(), data["position_ids"].values().cpu().numpy()
    first, columns = data["input_ids"].offsets()[:-1].cpu().numpy(), [ids]
    if positions.ndim > 1 or not _count_up(positions, first):
        columns += list(positions.reshape(-1, len(ids)))
    if images is not None:
        columns.append(images.item)
    return ids if len(columns) == 1 else np.stack(columns, axis=1)


def _count_up(positions: np.ndarray, first: np.ndarray, piece: int = 1 << 14) -> bool:
    """Whether they are 0, 1, 2, ... from each of the `first` places on; in pieces that stay in the cache."""
    jumps = [np.flatnonzero(np.diff(positions[i : i + piece + 1]) != 1) + i for i in range(0, len(positions), piece)]
    return not positions[first].any() and bool(np.isin(np.concatenate(jumps) + 1, first).all())


def _select(data: TensorDict, rows: list[int], outline: tuple | None) -> TensorDict:
    micro_batch = tu.index_select_tensor_dict(data, rows)
    tu.assign_non_tensor_data(micro_batch, OUTLINE, outline)
    return micro_batch


# ---- is it exact?

# How far log-probs (the mean of their differences, in nats) and gradients (the norm of the difference over the norm)
# may be apart, computed both ways: far above what rounding does, below what a token in sight too many does.
TOLERANCE = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (0.05, 0.2), torch.float16: (0.02, 0.1)}


def why_not_exact(passes: Passes, *, trees: bool, use_remove_padding: bool) -> str | None:
    """Computes a few rows of random tokens veRL's way and this one, forward and backward; why the two differ, or None.
    All ranks call it together. Parameters and optimizer stay as they are.
    """
    global _calls
    engine = passes.engine
    name = f"{type(passes.model).__name__.removeprefix('FSDP')} with attention {passes.config._attn_implementation}"
    data = random_rows(passes.model.config)
    tu.assign_non_tensor(
        data,
        temperature=1.0,
        use_remove_padding=use_remove_padding,
        use_dynamic_bsz=False,
        use_fused_kernels=False,
        micro_batch_size_per_gpu=len(data),
    )
    seen: list[torch.Tensor] = []

    def weighted(sign: int):
        """The sum of ± the log-probs of each row times a number of its own: the two gradients add up to nothing."""

        def loss(model_output, data, dp_group=None):
            log_probs, prompts = model_output["log_probs"].unbind(), data["prompts"].offsets().diff().tolist()
            rows = {
                number: row[prompt - 1 : -1]
                for number, row, prompt in zip(data["number"].tolist(), log_probs, prompts, strict=True)
            }
            seen.append(torch.cat([rows[number].detach() for number in sorted(rows)]))
            return sign * sum((0.5 - number) * row.sum() for number, row in rows.items()), {}

        return loss

    calls, _calls = _calls, 0
    with engine.train_mode():
        engine.optimizer_zero_grad()
        try:
            engine.forward_backward_batch(data, weighted(1))
            whole = gradient_norm(engine.module)
            with passes.during_update(trees):
                engine.forward_backward_batch(data, weighted(-1))
            left = gradient_norm(engine.module)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, NameError, AssertionError) as error:
            return f"{name}: {type(error).__name__}: {error}"
        finally:
            engine.optimizer_zero_grad()
            passes.counts.clear()
            used, _calls = _calls, calls
    if trees and not used:
        return f"{name}: its attention does not go through transformers' registry"
    apart, gradient = (seen[1] - seen[0]).abs().mean().item(), left / whole if whole else 0.0
    allowed = TOLERANCE.get(getattr(engine, "_autocast_dtype", torch.float32), TOLERANCE[torch.bfloat16])
    if not (apart <= allowed[0] and gradient <= allowed[1]):
        return f"{name}: computed both ways, log-probs are {apart:.1e} apart, gradients {gradient:.1e} of their norm"
    return None


def random_rows(config) -> TensorDict:
    """Two prompts; responses that share nothing, a beginning, everything, and one that is another's beginning. With an
    image in the prompts where the model has any.
    """
    generator, text = torch.Generator().manual_seed(0), config.get_text_config()
    sees_images = getattr(config, "image_token_id", None) is not None
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    special = {getattr(config, name, None) for name in names}
    words = torch.tensor([i for i in range(text.vocab_size) if i not in special])
    shown = {}
    if sees_images:
        vision = config.vision_config
        channels = getattr(vision, "in_channels", None) or vision.in_chans
        grid = torch.tensor([[1, 2 * vision.spatial_merge_size, vision.spatial_merge_size]])
        size = channels * vision.temporal_patch_size * vision.patch_size**2
        shown = {"pixel_values": torch.randn(int(grid.prod()), size, generator=generator), "image_grid_thw": grid}

    def tokens(count, image=False):
        drawn = words[torch.randint(len(words), (count,), generator=generator)]
        if image and sees_images:
            drawn = torch.cat([drawn[:2], torch.tensor([config.image_token_id] * 2), drawn[2:]])
        return drawn

    prompt, start = tokens(12, image=True), tokens(5)
    long = torch.cat([start, tokens(6)])
    prompts = [prompt, prompt, prompt, prompt, prompt, tokens(7, image=True)]
    responses = [long, tokens(4), torch.cat([start, tokens(3)]), long, start, tokens(6)]
    rows = [torch.cat(row) for row in zip(prompts, responses, strict=True)]

    def jagged(parts):
        return torch.nested.as_nested_tensor(list(parts), layout=torch.jagged)

    ones, positions = jagged(map(torch.ones_like, responses)), [torch.arange(len(row)) for row in rows]
    if sees_images:
        positions = tu.nested_tensor_from_tensor_list([place.expand(4, -1) for place in positions])
    data = TensorDict(
        {
            "input_ids": jagged(rows),
            "position_ids": positions if sees_images else jagged(positions),
            "prompts": jagged(prompts),
            "responses": jagged(responses),
            "response_mask": ones,
            "loss_mask": ones,
            "number": torch.arange(len(rows)),
        },
        batch_size=len(rows),
    )
    if sees_images:
        data["multi_modal_inputs"] = NonTensorStack(*[NonTensorData(shown) for _ in rows])
    return data


def gradient_norm(module: torch.nn.Module) -> float:
    """Of all ranks' parts together."""
    total = torch.zeros((), dtype=torch.float64, device=get_device_id())
    for parameter in module.parameters():
        if parameter.grad is not None:
            gradient = parameter.grad
            gradient = gradient.to_local() if hasattr(gradient, "to_local") else gradient
            total += torch.linalg.vector_norm(gradient, dtype=torch.float64).square().to(total.device)
    torch.distributed.all_reduce(total)
    return total.sqrt().item()
