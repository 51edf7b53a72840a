"""What only a GPU has and veRL's GPU defaults need, in plain torch: flash-attn's functions behind transformers'
`flash_attention_2`, `all_to_all` over gloo (Ulysses), FSDP1's streams and events. All else is veRL's, transformers' and
torch's own code.

`install` runs in each process before a model is made; `install_fsdp1` has FSDP1 too.
"""

from __future__ import annotations

import contextlib
import itertools
from types import SimpleNamespace

import torch
import torch.distributed as dist


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, deterministic=False,
):  # fmt: skip
    """Rows of q (tokens, heads, d) and of k, v laid end to end, each alone."""
    assert (dropout_p, tuple(window_size), softcap) == (0.0, (-1, -1), 0.0)
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    rows = [slice(start, end) for start, end in itertools.pairwise(cu_seqlens_q.tolist()) if end > start]
    return torch.cat([flash_attn_func(q[row][None], k[row][None], v[row][None], 0.0, softmax_scale, causal)[0]
                      for row in rows])  # fmt: skip


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
