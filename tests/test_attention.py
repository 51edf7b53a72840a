"""Attention over a prefix tree is that of the rows one by one: models of transformers without veRL, both ways that it
is computed, on a CPU through kernels that stand in for torch's flash attention (gpu_stand_ins.py).
"""

from __future__ import annotations

import threading
from collections import Counter

import gpu_stand_ins
import numpy as np
import pytest
import torch
from definition import difference
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from gpg_verl.algorithm.tree import Rows, branches, build_tree, cut
from gpg_verl.training import attention
from gpg_verl.training.attention import ATTENTION, Layout, TreeAttention, branch_sequences, flash_of, gather

SHAPE = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
}


def words(generator, count, of=56):
    return generator.integers(4, 4 + of, count).tolist()


def groups(generator):
    """Rows (prompt, response) whose prompts are shared."""
    return [(p, words(generator, 3 + i)) for p in [words(generator, 9) for _ in range(3)] for i in range(5)]


def nested(generator):
    """Responses of two words share beginnings of any length; one row is there twice."""
    rows = [(p, words(generator, 1 + i, 2)) for p in [words(generator, 5) for _ in range(2)] for i in range(8)]
    return [*rows, rows[3]]


def sessions(generator):
    """Several outputs each, of which each goes on from the one before."""
    rows = []
    for first in [words(generator, 6) for _ in range(2)]:
        for _ in range(3):
            prompt = first
            for _ in range(3):
                rows.append((prompt, words(generator, 4)))
                prompt = prompt + rows[-1][1] + words(generator, 2)
    return rows


class Case:
    """A model, rows with a weight each, and the gradient of the rows one by one in fp64."""

    def __init__(self, model="qwen2", rows=groups):
        torch.manual_seed(0)
        generator = np.random.default_rng(1)
        self.model, self.rows = MODELS[model](), rows(generator)
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(torch.randn_like(p) * 0.12 + (p.dim() == 1))
        self.row_weights = generator.normal(size=len(self.rows))
        self.tokens = np.array([token for p, r in self.rows for token in [*p, *r]])
        offsets = np.cumsum([0, *(len(p) + len(r) for p, r in self.rows)])
        scored = [i >= len(p) for p, r in self.rows for i in range(len(p) + len(r))]
        self.where = Rows(offsets, np.array(scored))
        self.whole = branches(self.tokens, self.where)
        self.expected = self.by_rows(torch.float64)

    def gradient(self):
        result = torch.cat([p.grad.flatten() for p in self.model.parameters()]).double()
        self.model.zero_grad()
        return result

    def by_rows(self, dtype):
        self.model.to(dtype).config._attn_implementation = "eager"
        for (prompt, response), weight in zip(self.rows, self.row_weights, strict=True):
            ids = torch.tensor([*prompt, *response])[None]
            log_probs = self.model(ids, use_cache=False).logits[0].float().to(dtype).log_softmax(-1)
            (log_probs[len(prompt) - 1 : -1].gather(-1, ids[0, len(prompt) :, None]).sum() * weight).backward()
        return self.gradient()

    def by_trees(self, dtype, ours=None, budget=10**6, backward=torch.Tensor.backward):
        ours = ours or TreeAttention()
        ours.register()
        self.model.to(dtype).config._attn_implementation = ATTENTION
        for start, end in cut(self.whole, budget):
            tree = build_tree(self.whole, start, end, self.where)
            own = np.concatenate([np.arange(*self.where.offsets[row : row + 2]) for row in self.whole.rows[start:end]])
            row = np.searchsorted(self.where.offsets, own, side="right") - 1
            sequences = branch_sequences(tree.branches())
            ours.layout = Layout.of(tree, sequences, [torch.from_numpy(x) for x in sequences])
            source = own[tree.source]
            positions = torch.from_numpy(source - self.where.offsets[row[tree.source]])[None]
            ids, ours.positions = torch.from_numpy(self.tokens[source])[None], positions
            logits = self.model(ids, position_ids=positions, use_cache=False).logits[0]
            assert not ours.refused
            after = gather(logits, torch.from_numpy(tree.follows)).float().to(dtype).log_softmax(-1)
            log_probs = after.gather(-1, torch.from_numpy(self.tokens[own[tree.token]])[:, None])[:, 0]
            weights = np.bincount(tree.pair, self.row_weights[row][tree.flat], minlength=len(tree.follows))
            backward((log_probs * torch.from_numpy(weights).to(dtype)).sum())
        return self.gradient()


def in_another_thread(loss):
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()


@pytest.fixture
def flash(monkeypatch):
    monkeypatch.setattr(attention, "supports_flash", gpu_stand_ins.flash_everywhere)


@pytest.fixture(params=["one call", "blocks"])
def way(request):
    if request.param == "one call":
        request.getfixturevalue("flash")
    return request.param


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(("model", "rows"), [("qwen2", groups), ("llama", nested), ("qwen3", sessions)])
def test_the_gradient_is_that_of_the_rows(way, model, rows):
    case = Case(model, rows)
    for dtype, budget in ((torch.float64, 10**6), (torch.float32, len(case.tokens) // 4)):  # whole, and groups are cut
        assert difference(case.by_trees(dtype, budget=budget), case.expected) <= 1e-6


def test_checkpointed_layers_are_computed_again_in_another_thread(way):
    """As on a GPU, where the backward has a thread of autograd's."""
    case = Case()
    case.model.gradient_checkpointing_enable({"use_reentrant": False})
    case.model.train()
    ours = TreeAttention()
    seen = case.by_trees(torch.float64, ours, budget=60, backward=in_another_thread)
    assert difference(seen, case.expected) <= 1e-6
    assert ours.calls == 2 * SHAPE["num_hidden_layers"] * len(cut(case.whole, 60)) > 2 * SHAPE["num_hidden_layers"]


def test_in_half_precision_no_farther_than_the_rows_themselves(way):
    case = Case()
    rows = difference(case.by_rows(torch.bfloat16), case.expected)
    assert 1e-3 < difference(case.by_trees(torch.bfloat16), case.expected) <= 1.1 * rows


def test_one_call_a_layer_and_nothing_is_sorted(flash):
    case = Case(rows=nested)
    with Operations() as operations:
        case.by_trees(torch.float32)
    layers = SHAPE["num_hidden_layers"]
    assert operations.counts["_flash_attention_forward"] == operations.counts["_flash_attention_backward"] == layers
    assert operations.counts["index_add_"] == 2 * layers + 1  # keys, values, and the input of the log-probs
    assert not {"index_put", "index_put_", "_index_put_impl_", "repeat_interleave", "tril"} & operations.counts.keys()


def test_gradients_of_copies_are_added_in_fp32():
    x = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    gather(x, torch.zeros(4096, dtype=torch.int64)).sum().backward()
    assert x.grad.flatten().tolist() == [4096, 0]  # in bf16 256 + 1 is 256


def test_the_models_own_flash_attention_is_called_where_it_has_one(flash, monkeypatch):
    import transformers.modeling_flash_attention_utils as utils

    called, own = [], gpu_stand_ins.flash_attn_varlen_func

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, deterministic=False,
    ):  # fmt: skip
        called.append(len(q))
        return own(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal)

    functions = (None, flash_attn_varlen_func, None, None, None)
    monkeypatch.setattr(utils, "_lazy_imports", lambda *args, **kwargs: functions)
    monkeypatch.setattr(utils, "_loaded_implementation", None)
    case = Case()
    for implementation, calls in (("flash_attention_2", SHAPE["num_hidden_layers"]), ("sdpa", 0)):
        called.clear()
        ours = TreeAttention(flash_of(implementation))
        assert difference(case.by_trees(torch.float64, ours), case.expected) <= 1e-6
        assert len(called) == calls
    monkeypatch.setattr(utils, "_loaded_implementation", None)


def test_where_there_is_no_gpu_it_is_blocks():
    case = Case()
    with Operations() as operations:
        case.by_trees(torch.bfloat16)
    assert not operations.counts["_flash_attention_forward"]


# ---- these tests can fail


def a_key_too_few(monkeypatch):
    def one_less(branches):
        keys, queries, sizes = attention.branch_sequences(branches)
        keys = keys.copy()
        keys[sizes[-2]] = keys[sizes[-2] + 1]  # the last branch does not see the first token
        return keys, queries, sizes

    monkeypatch.setitem(globals(), "branch_sequences", one_less)


def siblings_seen(monkeypatch):
    def all_before(branches):
        starts, ends, _ = zip(*branches, strict=True)
        return (
            np.concatenate([np.arange(end) for end in ends]),
            np.cumsum([0, *np.subtract(ends, starts)]),
            np.cumsum([0, *ends]),
        )

    monkeypatch.setitem(globals(), "branch_sequences", all_before)


def aligned_at_the_upper_left(monkeypatch):
    def scores(q, k, scale, causal):
        scores = torch.einsum("nhd,shd->hns", q, k) * scale
        return scores.masked_fill(~torch.ones(len(q), len(k), dtype=torch.bool).tril(), -torch.inf)

    monkeypatch.setattr(gpu_stand_ins, "_scores", scores)


@pytest.mark.parametrize("mistake", [a_key_too_few, siblings_seen, aligned_at_the_upper_left])
def test_the_comparison_notices(flash, monkeypatch, mistake):
    case = Case()
    mistake(monkeypatch)
    assert difference(case.by_trees(torch.float64), case.expected) > 1e-3


def test_blocks_that_show_siblings_are_noticed(monkeypatch):
    case = Case(rows=nested)
    monkeypatch.setattr(attention, "attention_mask", lambda tree, queries, keys: keys[None] <= queries[:, None])
    assert difference(case.by_trees(torch.float64), case.expected) > 1e-3
