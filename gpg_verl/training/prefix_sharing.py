"""An update's forward passes over prefix trees (algorithm/tree.py) in veRL's FSDP engine. During an update it changes

- `prepare_micro_batches`: rows in the order of their tree, filled up to the budget by the tokens that are computed,
- `prepare_model_inputs`: a tree's tokens and position ids, one sequence; attention through transformers' registry; the
  vocabulary only at the positions that score a token,
- `prepare_model_outputs`: log-probs and entropy back in the shape of rows, so that the loss and all that is measured
  from it see rows as ever. The gradient sums over the rows that share a token on its way back.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from tensordict import TensorDict
from transformers import AttentionInterface, PreTrainedModel
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from gpg_verl.algorithm.tree import Branches, Rows, Tree, blocks, branches, cut, cut_evenly, grow, sees
from gpg_verl.compat.seams import seam

ATTENTION = "gpg_prefix_tree"
BRANCHES = "gpg_branches"  # of a micro-batch, under this name in its TensorDict

# What one more call of attention costs, in pairs of a query and a key: on a CPU about 0.1 ms, on a GPU a few launches.
OVERHEAD = {"cpu": 1 << 13, "cuda": 1 << 18}

# Arguments of attention functions that change who sees whom or by how much; here they have no effect.
UNKNOWN = ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask", "chunk_size")


class NotExact(RuntimeError):
    """What a model asks of attention is not what a tree's attention does."""


# ---- attention


@dataclass(frozen=True)
class Layout:
    """The blocks of a tree (`tree.blocks`) for attention; consecutive, so that queries are split and keys gathered once.

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
            elif len(block.before):
                mask = torch.ones(len(own), len(seen), dtype=torch.bool, device=device).tril(len(block.before))
            masks.append(mask)
        together = None if queries == sizes else torch.from_numpy(np.concatenate(keys)).to(device)
        return cls(queries, sizes, together, masks)


# The layout of the pass that is being computed, its backward included: with gradient checkpointing that computes layers
# again, maybe in a thread of autograd's.
_layout: Layout | None = None
_calls = 0


def attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Attention over a tree as one sequence, in the interface of transformers' registry: (1, heads, nodes, d) each."""
    global _calls
    _calls += 1
    asked = [name for name in UNKNOWN if kwargs.get(name) is not None]
    if asked or dropout:
        raise NotExact(f"its attention takes {', '.join(asked) or 'dropout'}")
    if attention_mask is not None or len(query) != 1 or sum(_layout.queries) != query.shape[2]:
        raise NotExact("it changes the sequence or its mask before attention")
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


# ---- log-probs


class _LogProbs(torch.autograd.Function):
    """log softmax(logits)[at, token], for pairs that differ, with one buffer of the logits' size in the backward."""

    @staticmethod
    def forward(ctx, logits, at, token):
        total = torch.cat([_precise(part).logsumexp(-1) for part in logits.split(1024)])
        log_probs = _precise(logits[at, token]) - total[at]
        ctx.save_for_backward(logits, total, log_probs, at, token)
        return log_probs

    @staticmethod
    def backward(ctx, gradient):
        logits, total, log_probs, at, token = ctx.saved_tensors
        passing = torch.zeros_like(total).index_add(0, at, gradient)
        result = torch.empty_like(logits)
        for out, part, whole, weight in zip(
            *(x.split(1024) for x in (result, logits, total, passing)), strict=True
        ):
            out.copy_((_precise(part) - whole[:, None]).exp_().mul_(-weight[:, None]))
        result[at, token] = (gradient - log_probs.exp() * passing[at]).to(result.dtype)
        return result, None, None


def _precise(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


# ---- the engine


class PrefixSharing:
    """Forward passes over trees, for one FSDP engine.

    counts: what was computed since it was last cleared: tokens_computed, tokens_shared (of the rows, not computed for
        being another's), positions_scored, and `row_tokens`, of all tokens of the rows.
    """

    def __init__(self, engine: FSDPEngineWithLMHead, entropy_has_gradient: bool):
        self.engine, self.entropy_has_gradient = engine, entropy_has_gradient
        self.model = next(m for m in engine.module.modules() if isinstance(m, PreTrainedModel))
        self.head = self.model.get_output_embeddings()
        self.config = self.model.config.get_text_config()
        self.counts: Counter[str] = Counter()
        self.tree: Tree | None = None

    @contextlib.contextmanager
    def during_update(self):
        """While it lasts, the engine's passes are over trees."""
        global _layout
        engine, plain = self.engine, self.config._attn_implementation
        replaced = {
            "prepare_model_inputs": (("self", "micro_batch"), self._inputs),
            "prepare_model_outputs": (
                ("self", "output", "output_args", "micro_batch", "logits_processor_func"),
                self._outputs,
            ),
        }
        verls = seam(transformer_impl, "prepare_micro_batches", ("data", "dp_group"))
        for name, (parameters, ours) in replaced.items():
            seam(type(engine), name, parameters)
            setattr(engine, name, ours)
        transformer_impl.prepare_micro_batches = self._micro_batches
        self.config._attn_implementation = ATTENTION
        hook = self.head.register_forward_pre_hook(self._only_scored)
        try:
            yield
        finally:
            hook.remove()
            self.config._attn_implementation = plain
            transformer_impl.prepare_micro_batches = verls
            for name in replaced:
                delattr(engine, name)
            self.tree = _layout = None

    # ---- micro-batches

    def _micro_batches(self, data: TensorDict, dp_group=None, **_):
        """Parts of the rows' tree, equally many on each rank."""
        whole, budget = branches(symbols_of(data), rows_of(data)), self._budget(data)
        count = torch.tensor(len(cut(whole, budget)), device=get_device_id())
        torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MAX, group=dp_group)
        result = []
        for start, end in cut_evenly(whole, budget, int(count)):
            part = whole.part(start, end)
            result.append(_select(data, part.rows.tolist(), part))
        while len(result) < int(count):  # this rank has no row left where another has
            none = _select(data, [0], Branches(*[np.zeros(0, dtype=np.int64)] * 3))
            for name in ("response_mask", "advantages"):
                if name in none:
                    none[name] = none[name] * 0
            result.append(none)
        return result, None

    def _budget(self, data: TensorDict) -> int:
        """Tokens that a pass may have: as many as veRL allows it."""
        if tu.get_non_tensor_data(data, "use_dynamic_bsz", default=True):
            return int(data["max_token_len_per_gpu"])
        longest = int(data["input_ids"].offsets().diff().max())
        return max(1, int(data["micro_batch_size_per_gpu"])) * longest

    # ---- one pass

    def _inputs(self, micro_batch: TensorDict):
        global _layout
        rows, part = rows_of(micro_batch), tu.get_non_tensor_data(micro_batch, BRANCHES, default=None)
        tree = grow(Branches(np.arange(len(part)), part.shared, part.lengths), rows)
        ids, positions = micro_batch["input_ids"].values(), micro_batch["position_ids"].values()
        if not len(tree):  # a pass for the other ranks' sake: one token, and nothing scored
            zero = np.zeros(1, dtype=np.int64)
            tree = Tree(zero, zero + 1, zero, [zero[:0]], zero, zero, zero, zero[:0], zero[:0])
        else:
            self.counts["tokens_computed"] += len(tree)
            self.counts["tokens_shared"] += int(rows.offsets[-1]) - len(tree)
            self.counts["positions_scored"] += len(tree.positions)
        source = torch.from_numpy(tree.source).to(ids.device)
        self.tree, _layout = tree, Layout.of(tree, ids.device)
        self.scored = torch.from_numpy(tree.positions).to(ids.device)
        return {
            "input_ids": ids[source].unsqueeze(0),
            "attention_mask": None,
            "position_ids": positions[..., source].unsqueeze(-2),
        }, {}

    def _only_scored(self, module, args):
        """What the vocabulary's layer is given: hidden states of the positions that score a token."""
        hidden, *others = args
        return (hidden[:, self.scored], *others)

    def _outputs(self, output, output_args, micro_batch: TensorDict, logits_processor_func):
        tree, ids = self.tree, micro_batch["input_ids"]
        logits = output.logits.squeeze(0)
        if hasattr(logits, "full_tensor"):
            logits = logits.full_tensor()
        if micro_batch["temperature"] != 1.0:
            logits = logits / max(micro_batch["temperature"], 1e-8)
        at, token, flat, pair = (
            torch.from_numpy(x).to(logits.device) for x in (tree.at, tree.token, tree.flat, tree.pair)
        )
        log_probs = _LogProbs.apply(logits, at, ids.values()[token])

        def in_rows(values):
            # veRL has a token's number at the place before the token.
            rows = values.new_zeros(len(ids.values())).index_put((flat - 1,), values)
            return torch.nested.nested_tensor_from_jagged(rows, ids.offsets())

        result = {"log_probs": in_rows(log_probs[pair])}
        if tu.get_non_tensor_data(micro_batch, "calculate_entropy", default=False):
            result["entropy"] = in_rows(self._entropy(logits)[at[pair]])
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


def symbols_of(data: TensorDict) -> np.ndarray:
    """What makes two tokens of a batch the same: the token, and its position ids where they do not just count."""
    ids, offsets = data["input_ids"].values(), data["input_ids"].offsets()
    positions = data["position_ids"].values()
    if positions.dim() == 1:
        counting = torch.arange(len(ids), device=ids.device) - torch.repeat_interleave(offsets[:-1], offsets.diff())
        if torch.equal(positions, counting):
            return ids.cpu().numpy()
    return torch.cat([ids.unsqueeze(0), positions.view(-1, len(ids))]).T.cpu().numpy()


def _select(data: TensorDict, rows: list[int], part: Branches) -> TensorDict:
    micro_batch = tu.index_select_tensor_dict(data, rows)
    tu.assign_non_tensor_data(micro_batch, BRANCHES, part)
    return micro_batch


# ---- is it exact?

# How far log-probs (the mean of their differences, in nats) and gradients (the norm of the difference over the norm) may
# be apart, computed both ways: some hundred times what rounding does, far below what one token in sight too many does.
TOLERANCE = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (0.05, 0.2), torch.float16: (0.02, 0.1)}


def why_not_exact(sharing: PrefixSharing, *, use_remove_padding: bool) -> str | None:
    """Computes a few rows of random tokens both ways, forward and backward; why trees are not exact for this engine, or
    None. All ranks call it together. Parameters and optimizer stay as they are.
    """
    global _calls
    engine = sharing.engine
    name = f"{type(sharing.model).__name__} with attention {sharing.config._attn_implementation}"
    data = random_rows(sharing.config.vocab_size)
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
            with sharing.during_update():
                engine.forward_backward_batch(data, weighted(-1))
            left = gradient_norm(engine.module)
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError) as error:
            return f"{name}: {type(error).__name__}: {error}"
        finally:
            engine.optimizer_zero_grad()
            sharing.counts.clear()
            used, _calls = _calls, calls
    if not used:
        return f"{name}: its attention does not go through transformers' registry"
    apart, gradient = (seen[1] - seen[0]).abs().mean().item(), left / whole if whole else 0.0
    allowed = TOLERANCE.get(getattr(engine, "_autocast_dtype", torch.float32), TOLERANCE[torch.bfloat16])
    if not (apart <= allowed[0] and gradient <= allowed[1]):
        return f"{name}: computed both ways, log-probs are {apart:.1e} apart, gradients {gradient:.1e} of their norm"
    return None


def random_rows(vocabulary: int) -> TensorDict:
    """Two prompts; responses that share nothing, a beginning, everything, and one that is another's beginning."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count):
        return torch.randint(vocabulary, (count,), generator=generator)

    prompt, start = tokens(12), tokens(5)
    long = torch.cat([start, tokens(6)])
    prompts = [prompt, prompt, prompt, prompt, prompt, tokens(7)]
    responses = [long, tokens(4), torch.cat([start, tokens(3)]), long, start, tokens(6)]
    rows = [torch.cat(row) for row in zip(prompts, responses, strict=True)]

    def jagged(parts):
        return torch.nested.as_nested_tensor(list(parts), layout=torch.jagged)

    ones = jagged(map(torch.ones_like, responses))
    return TensorDict(
        {
            "input_ids": jagged(rows),
            "position_ids": jagged(torch.arange(len(row)) for row in rows),
            "prompts": jagged(prompts),
            "responses": jagged(responses),
            "response_mask": ones,
            "loss_mask": ones,
            "number": torch.arange(len(rows)),
        },
        batch_size=len(rows),
    )


def gradient_norm(module: torch.nn.Module) -> float:
    """Of all ranks' parts together."""
    total = torch.zeros((), dtype=torch.float64, device=get_device_id())
    for parameter in module.parameters():
        if parameter.grad is not None:
            gradient = parameter.grad
            gradient = gradient.to_local() if hasattr(gradient, "to_local") else gradient
            total += gradient.double().square().sum().to(total.device)
    torch.distributed.all_reduce(total)
    return total.sqrt().item()
