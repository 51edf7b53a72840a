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
from tensordict import TensorDict
from transformers import PreTrainedModel
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from gpg_verl.algorithm.tree import Rows, Tree, branches, cut_evenly, grow, outlines
from gpg_verl.compat.seams import replaced, seam
from gpg_verl.training.attention import ATTENTION, Layout, NotExact, TreeAttention
from gpg_verl.training.images import Images
from gpg_verl.training.log_probs import LogProbs

OUTLINE = "gpg_outline"  # of a micro-batch's tree, under this name in its TensorDict

# From so many tokens on a longer pass is not faster, and only holds more. On a GPU that is for the budget to say.
MAX_TOKENS_PER_PASS = {"cpu": 2048}


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
        self.attention = TreeAttention()
        self.active = False
        self.scored: Scored | None = None

    @contextlib.contextmanager
    def during_update(self, trees: bool):
        """While it lasts, the engine's passes are over trees or, as veRL's, over rows; both score what counts only."""
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
                self.attention.register()
                seam(type(engine), "optimizer_step", ("self",))
                undo.enter_context(replaced(engine, "optimizer_step", self._step_if_exact(engine.optimizer_step)))
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
                    undo.enter_context(
                        replaced(qwen2_vl, "_custom_flash_attention_forward", self.attention.attend_in_qwen2_vl)
                    )
            self.active = True
            try:
                yield
            finally:
                self.active, self.scored, self.attention.layout = False, None, None

    def refused(self) -> str:
        """Why attention over a tree could not be what the model asked for, on any rank; "" where it was. All ranks call
        it together.
        """
        group = self.engine.get_data_parallel_group()
        reasons = [self.attention.refused] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(reasons, self.attention.refused, group=group)
        return next(filter(None, reasons), "")

    def _step_if_exact(self, step):
        def optimizer_step():
            if reason := self.refused():
                raise NotExact(
                    f"{type(self.model).__name__}: {reason}, which was not so for the rows that were checked"
                )
            return step()

        return optimizer_step

    # ---- micro-batches

    def _micro_batches(self, data: TensorDict, dp_group=None, **_):
        """Parts of the rows' tree, equally many on each rank."""
        images = Images.of(data, self.model.config)
        rows, budget = rows_of(data), self._budget(data)
        whole = branches(symbols_of(data, images), rows)
        enough = MAX_TOKENS_PER_PASS.get(get_device_name(), budget)
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

        source, self.attention.layout = there(tree.source), Layout.of(tree, ids.device)
        self.attention.positions = positions.view(-1, len(ids))[:1, source]
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
        scored, ids = self.scored, micro_batch["input_ids"]
        logits = output.logits.squeeze(0)
        if hasattr(logits, "full_tensor"):
            logits = logits.full_tensor()
        if micro_batch["temperature"] != 1.0:
            logits = logits / max(micro_batch["temperature"], 1e-8)
        log_probs = LogProbs.apply(logits, scored.at, ids.values()[scored.token], not self.entropy_has_gradient)

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
