"""An update's forward passes in veRL's FSDP engine: over prefix trees (algorithm/tree.py), or row by row where trees
are not exact; either way with the vocabulary only where a token is scored. During an update it changes

- `prepare_micro_batches`, for trees: rows in their tree's order, filled up to the budget by the tokens computed,
- `prepare_model_inputs`: for trees their tokens, position ids and images, as one sequence, with attention by way of
  transformers' registry; the input of lm_head is one position for each scored token,
- `prepare_model_outputs`: log-probs and entropy back in the shape of rows, so that the loss and all that is measured
  from it see rows as ever. The gradient sums over the rows that share a token on its way back.
"""

from __future__ import annotations

import contextlib
import functools
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

from gpg_verl.algorithm.tree import Rows, Tree, branches, build_tree, cut_evenly
from gpg_verl.compat.seams import replaced, seam
from gpg_verl.training.attention import (
    ATTENTION,
    Layout,
    NotExact,
    TreeAttention,
    branch_sequences,
    flash_of,
    gather,
)
from gpg_verl.training.images import Images
from gpg_verl.training.log_probs import log_probs_of

TREE = "gpg_tree"  # what a micro-batch's tree and its images are called in its TensorDict

# From so many tokens on a longer pass is not faster, and only holds more. On a GPU that is for the budget to say.
MAX_TOKENS_PER_PASS = {"cpu": 2048}


@dataclass(frozen=True)
class Scored:
    """What a pass scores. sequence, place: (pairs,) of the token that each scored token follows, in what the model is
    given; the rest as in `Tree`.
    """

    sequence: torch.Tensor | int
    place: torch.Tensor
    token: torch.Tensor
    flat: torch.Tensor
    pair: torch.Tensor


class Passes:
    """The forward passes of an update, for one FSDP engine.

    counts: what was computed since it was last cleared: tokens_computed, tokens_shared (of rows, not computed as
        another row has them), positions_scored (the input of lm_head), and attended_pairs of a query and a key.
    """

    def __init__(self, engine: FSDPEngineWithLMHead, entropy_has_gradient: bool):
        self.engine, self.entropy_has_gradient = engine, entropy_has_gradient
        self.model = next(m for m in engine.module.modules() if isinstance(m, PreTrainedModel))
        self.head = self.model.get_output_embeddings()
        self.config = self.model.config.get_text_config()
        self.counts: Counter[str] = Counter()
        self.attention = TreeAttention(flash_of(self.config._attn_implementation))
        self.active = False
        self.scored: Scored | None = None

    @contextlib.contextmanager
    def during_update(self, trees: bool):
        """While it lasts, the engine's passes are over trees or, as veRL's, over rows; both score what counts only."""
        engine, owner = self.engine, type(self.engine)
        inputs = seam(owner, "prepare_model_inputs", ("self", "micro_batch"))
        seam(owner, "prepare_model_outputs", ("self", "output", "output_args", "micro_batch", "logits_processor_func"))
        with contextlib.ExitStack() as undo:
            hook = self.head.register_forward_pre_hook(self._only_scored)
            undo.callback(hook.remove)
            undo.enter_context(replaced(engine, "prepare_model_outputs", self._outputs))
            ours = self._tree_inputs if trees else functools.partial(self._row_inputs, inputs)
            undo.enter_context(replaced(engine, "prepare_model_inputs", ours))
            if trees:
                self.attention.register()
                seam(owner, "optimizer_step", ("self",))
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
                    ours = self.attention.attend_in_qwen2_vl
                    undo.enter_context(replaced(qwen2_vl, "_custom_flash_attention_forward", ours))
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
                raise NotExact(f"{type(self.model).__name__}: {reason}, which was not so for the rows checked")
            return step()

        return optimizer_step

    # ---- micro-batches

    def _micro_batches(self, data: TensorDict, dp_group=None, **_):
        """Parts of the rows' tree, equally many on each rank."""
        images = Images.of(data, self.model.config)
        rows, budget = rows_of(data), self._budget(data)
        whole = branches(symbols_of(data, images), rows)
        most = MAX_TOKENS_PER_PASS.get(get_device_name(), budget)
        parts = cut_evenly(whole, budget, math.ceil(int(whole.computed().sum()) / most))
        count = torch.tensor(len(parts), device=get_device_id())
        torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MAX, group=dp_group)
        if len(parts) < count:
            parts = cut_evenly(whole, budget, int(count))
        result = []
        for start, end in parts:
            tree, shown = build_tree(whole, start, end, rows), {}
            if images is not None:
                tokens = [np.arange(*rows.offsets[row : row + 2]) for row in whole.rows[start:end]]
                shown = images.along(np.concatenate(tokens)[tree.source])
            result.append(_select(data, whole.rows[start:end].tolist(), tree, shown))
        while len(result) < int(count):  # this rank has no row left where another has: one token, and nothing scored
            zero, none, last = np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int64), rows.offsets[1:2] - 1
            nothing = _select(data, [0], Tree(last, zero, [none], zero, last, none, none), {})
            for name in ("response_mask", "advantages"):
                if name in nothing:
                    nothing[name] = nothing[name] * 0
            result.append(nothing)
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
        tree, shown = tu.get_non_tensor_data(micro_batch, TREE, default=None)
        ids, positions = micro_batch["input_ids"].values(), micro_batch["position_ids"].values()
        if len(tree.flat):
            self._count(len(tree), len(ids) - len(tree), len(tree.follows), tree.num_attended_pairs())
        sequences = branch_sequences(tree.branches())
        source, follows, token, flat, pair, *on_device = to_device(
            [tree.source, tree.follows, tree.token, tree.flat, tree.pair, *sequences], ids.device
        )
        self.attention.layout = Layout.of(tree, sequences, on_device)
        self.scored = Scored(0, follows, token, flat, pair)
        self.attention.positions = positions.view(-1, len(ids))[:1, source]
        return {
            "input_ids": ids[source].unsqueeze(0),
            "attention_mask": None,
            "position_ids": positions[..., source].unsqueeze(-2),
            **{name: torch.cat(parts).to(ids.device) for name, parts in shown.items()},
        }, {}

    def _row_inputs(self, verls, micro_batch: TensorDict):
        rows, ids = rows_of(micro_batch), micro_batch["input_ids"].values()
        flat, lengths = np.flatnonzero(rows.scored), np.diff(rows.offsets)
        self._count(len(ids), 0, len(flat), int((lengths * (lengths + 1) // 2).sum()))
        token = flat if len(flat) else np.ones(1, dtype=np.int64)  # padding alone: one, for no row
        row, place = np.zeros_like(token), token - 1  # a token is scored by the position before it
        if not tu.get_non_tensor_data(micro_batch, "use_remove_padding", default=True):
            row = np.searchsorted(rows.offsets, token, side="right") - 1
            place = place - rows.offsets[row]
        self.scored = Scored(*to_device([row, place, token, flat, np.arange(len(flat))], ids.device))
        return verls(self.engine, micro_batch)

    def _count(self, computed: int, shared: int, scored: int, attended: int) -> None:
        self.counts.update(
            tokens_computed=computed, tokens_shared=shared, positions_scored=scored, attended_pairs=attended
        )

    def _only_scored(self, module, args):
        """The input of lm_head: hidden states of the positions that score a token, (1, pairs, hidden)."""
        hidden, *others = args
        index = self.scored.sequence * hidden.shape[1] + self.scored.place
        return (gather(hidden.flatten(0, 1), index).unsqueeze(0), *others)

    def _outputs(self, output, output_args, micro_batch: TensorDict, logits_processor_func):
        scored, ids = self.scored, micro_batch["input_ids"]
        logits = output.logits.squeeze(0)
        if hasattr(logits, "full_tensor"):
            logits = logits.full_tensor()
        if micro_batch["temperature"] != 1.0:
            logits = logits / max(micro_batch["temperature"], 1e-8)
        log_probs = log_probs_of(logits, ids.values()[scored.token], in_place=not self.entropy_has_gradient)

        def in_rows(values):
            # veRL has a token's number at the place before the token.
            rows = values.new_zeros(len(ids.values())).index_copy(0, scored.flat - 1, gather(values, scored.pair))
            return torch.nested.nested_tensor_from_jagged(rows, ids.offsets())

        result = {"log_probs": in_rows(log_probs)}
        if tu.get_non_tensor_data(micro_batch, "calculate_entropy", default=False):
            with torch.set_grad_enabled(self.entropy_has_gradient):  # else it is a number for the log
                result["entropy"] = in_rows(self._entropy(logits))
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
    scored = _counted(offsets) >= np.repeat(data["prompts"].offsets().diff().cpu().numpy(), np.diff(offsets))
    scored[scored] = data["response_mask"].values().cpu().numpy().astype(bool)
    return Rows(offsets, scored)


def _counted(offsets: np.ndarray) -> np.ndarray:
    """(tokens,) each token's place in its row."""
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))


def symbols_of(data: TensorDict, images: Images | None) -> np.ndarray:
    """What makes two tokens of a batch the same: the token, the image that it is a part of, and its position ids where
    they do not just count.
    """
    ids, positions = data["input_ids"].values().cpu().numpy(), data["position_ids"].values().cpu().numpy()
    columns = [ids]
    if positions.ndim > 1 or not np.array_equal(positions, _counted(data["input_ids"].offsets().cpu().numpy())):
        columns += list(positions.reshape(-1, len(ids)))
    if images is not None:
        columns.append(images.item)
    return ids if len(columns) == 1 else np.stack(columns, axis=1)


def to_device(arrays: list[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """All in one buffer, sent once, as each copy to a GPU is a wait; integers all."""
    buffer = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        buffer = buffer.pin_memory()
    return list(buffer.to(device, non_blocking=True).split([len(numbers) for numbers in arrays]))


def _select(data: TensorDict, rows: list[int], tree: Tree, shown: dict[str, list[torch.Tensor]]) -> TensorDict:
    micro_batch = tu.index_select_tensor_dict(data, rows)
    tu.assign_non_tensor_data(micro_batch, TREE, (tree, shown))
    return micro_batch
