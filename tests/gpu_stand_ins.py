"""What only a GPU has and veRL's GPU defaults need, in plain torch: torch's flash attention, flash-attn's functions
behind transformers' `flash_attention_2`, `all_to_all` over gloo (Ulysses), FSDP1's streams and events. All else is
veRL's, transformers' and torch's own code.

`install` runs in each process before a model is made; `install_fsdp1` has FSDP1 too.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from types import SimpleNamespace

import torch
import torch.distributed as dist

from gpg_verl.training import attention


def _sequences(cu_seqlens_q, cu_seqlens_k):
    for q, k in zip(itertools.pairwise(cu_seqlens_q.tolist()), itertools.pairwise(cu_seqlens_k.tolist()), strict=True):
        yield slice(*q), slice(*k)


def _scores(q, k, scale, causal):
    """(heads, queries, keys); causal: the last query sees the last key."""
    scores = torch.einsum("nhd,shd->hns", q, k) * scale
    unseen = ~torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
    return scores.masked_fill(unseen, -math.inf) if causal else scores


def _repeated(query, *others):
    """As many heads of keys and values as of queries, all in fp32 at least."""
    precise = torch.promote_types(query.dtype, torch.float32)
    times = query.shape[1] // others[0].shape[1]
    return query.to(precise), *(x.to(precise).repeat_interleave(times, 1) for x in others)


def flash_forward(
    query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *, scale=None, **_
):
    assert (dropout_p, max_q, max_k) == (0, int(cum_seq_q.diff().max()), int(cum_seq_k.diff().max()))
    assert cum_seq_q.dtype == cum_seq_k.dtype == torch.int32
    assert (int(cum_seq_q[-1]), int(cum_seq_k[-1])) == (len(query), len(key))
    out, (q, k, v) = torch.zeros_like(query), _repeated(query, key, value)
    total = q.new_zeros(q.shape[1], len(q))
    for of_q, of_k in _sequences(cum_seq_q, cum_seq_k):
        scores = _scores(q[of_q], k[of_k], scale or q.shape[-1] ** -0.5, is_causal)
        total[:, of_q] = scores.logsumexp(-1)
        out[of_q] = torch.einsum("hns,shd->nhd", scores.softmax(-1), v[of_k]).to(out.dtype)
    return out, total, torch.zeros(2, dtype=torch.int64), torch.empty(0), torch.empty(0)


def flash_backward(
    grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, rng_state,
    unused, *, scale=None, **_,
):  # fmt: skip
    q, k, v = _repeated(query, key, value)
    gradient, out, scale = grad_out.to(q.dtype), out.to(q.dtype), scale or q.shape[-1] ** -0.5
    of_query, of_key, of_value = (torch.zeros_like(x) for x in (q, k, v))
    for of_q, of_k in _sequences(cum_seq_q, cum_seq_k):
        part = gradient[of_q]
        weights = (_scores(q[of_q], k[of_k], scale, is_causal) - logsumexp[:, of_q, None]).exp()
        of_weights = torch.einsum("nhd,shd->hns", part, v[of_k]) - (part * out[of_q]).sum(-1).T[:, :, None]
        of_scores = weights * of_weights * scale
        of_query[of_q] = torch.einsum("hns,shd->nhd", of_scores, k[of_k])
        of_key[of_k] = torch.einsum("hns,nhd->shd", of_scores, q[of_q])
        of_value[of_k] = torch.einsum("hns,nhd->shd", weights, part)
    groups = [x.unflatten(1, (key.shape[1], -1)).sum(2).to(key.dtype) for x in (of_key, of_value)]
    return of_query.to(query.dtype), *groups


# torch's own operations have kernels for GPUs alone; their schemas and their autograd are torch's.
KERNELS = torch.library.Library("aten", "IMPL", "CPU")
KERNELS.impl("_flash_attention_forward", flash_forward)
KERNELS.impl("_flash_attention_backward", flash_backward)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, deterministic=False,
):  # fmt: skip
    """Sequences of q (tokens, heads, d) and of k, v laid end to end, each alone."""
    assert (tuple(window_size), softcap) == ((-1, -1), 0.0)
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return torch.ops.aten._flash_attention_forward(q, k, v, *lengths, dropout_p, causal, False, scale=softmax_scale)[0]


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, deterministic=False
):
    """(rows, tokens, heads, d) each; fewer heads of k and v are shared."""
    repeat = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale)
    return out.transpose(1, 2)


def all_to_all(output_list, input_list, group=None, async_op=False):
    mine = torch.stack([tensor.contiguous() for tensor in input_list])
    of_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(of_ranks, mine, group=group)
    for output, theirs in zip(output_list, of_ranks, strict=True):
        output.copy_(theirs[dist.get_rank(group)])


def install() -> None:
    import transformers.modeling_flash_attention_utils as flash
    from transformers.modeling_utils import PreTrainedModel

    functions = (flash_attn_func, flash_attn_varlen_func, None, flash._pad_input, flash._unpad_input)
    flash._lazy_imports = lambda *args, **kwargs: functions
    flash._loaded_implementation = None  # of this process
    PreTrainedModel._flash_attn_can_dispatch = lambda self, *args, **kwargs: True
    dist.all_to_all = all_to_all
    attention.supports_flash = flash_everywhere


def flash_everywhere(query, key, value) -> bool:
    return True


def install_for_qwen2_vl() -> None:
    """veRL's Qwen2-VL calls flash-attn by names that exist only with it, and turns fp32 to bf16 before."""
    install()
    import verl.models.transformers.qwen2_vl as model

    model.flash_attn_varlen_func, model.flash_attn_func = flash_attn_varlen_func, flash_attn_func
    model._flash_supports_window_size, model._flash_supports_deterministic = True, True
    model._flash_use_top_left_mask = False
    model.fa_peft_integration_check = lambda q, k, v, target_dtype=None: (q, k, v)


class Nothing:
    """A stream or an event where everything is done when it returns."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def install_fsdp1() -> None:
    """torch refuses FSDP1 for CPU tensors in one check, and asks the device for streams, events and its memory."""
    install()
    import torch.distributed.fsdp._init_utils as init
    import torch.distributed.fsdp.fully_sharded_data_parallel as fsdp
    from torch.distributed.fsdp._common_utils import _FSDPDeviceHandle

    def nothing(*args, **kwargs):
        return None

    backend = SimpleNamespace(
        Stream=Nothing,
        Event=Nothing,
        current_stream=Nothing,
        stream=lambda stream: contextlib.nullcontext(),
        synchronize=nothing,
        empty_cache=nothing,
        current_device=lambda: torch.device("cpu"),
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 1,
        mem_get_info=lambda device=None: (1 << 34, 1 << 35),
        memory_stats=lambda device=None: {"num_alloc_retries": 0},
    )

    def device_handle(state, module, ignored_params, device_id):
        state._device_handle = _FSDPDeviceHandle(torch.device("cpu"), backend=backend)
        return state

    init._check_module_states_for_sync_module_states = nothing
    for module in (init, fsdp):
        module._init_device_handle = device_handle
