"""What is broken in veRL 0.9.1 or its pins on any hardware: one function per fix, named for what works with it."""

from __future__ import annotations

import contextlib
import functools
import logging

from gpg_verl.compat.seams import replaced, seam


def accept_text_only_micro_batches(qwen2_vl) -> None:
    """Qwen2-VL and Qwen2.5-VL crash on a micro-batch in which no row has an image (`_get_input_embeds`): its branch
    sends zeros through the vision tower, so that every rank does the same work, and takes what comes back for a
    tensor; with transformers 5 it is an object. Such micro-batches come from data sets that mix, and from padding.
    """
    parameters = ("model", "input_ids", "attention_mask", "pixel_values", "pixel_values_videos")
    original = seam(qwen2_vl, "_get_input_embeds", parameters)
    unpack = seam(qwen2_vl, "unpack_visual_output", ("visual_output",))

    @functools.wraps(original)
    def _get_input_embeds(
        model, input_ids, attention_mask=None, pixel_values=None, pixel_values_videos=None, *grids, **named_grids
    ):
        if pixel_values is not None or pixel_values_videos is not None:
            return original(model, input_ids, attention_mask, pixel_values, pixel_values_videos, *grids, **named_grids)
        embeds = model.get_input_embeddings()(input_ids)
        vision = model.config.vision_config
        pixels = embeds.new_zeros(16, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)
        grid = input_ids.new_tensor([[1, 4, 4]])
        features, _ = unpack(model.visual(pixels, grid_thw=grid))
        embeds = embeds + 0.0 * features.mean()
        return embeds, None if attention_mask is None else attention_mask.to(embeds.device)

    qwen2_vl._get_input_embeds = _get_input_embeds


def log_that_takes_flush(trainer_separate_async) -> contextlib.AbstractContextManager:
    """`separate_async` without rollout on the trainer's GPUs (`actor_rollout_ref.hybrid_engine=False`) logs that it is
    so with `flush=True`, as `print` takes it and a logger does not, and ends there, once all models are loaded.
    """

    class Log(logging.LoggerAdapter):
        def info(self, msg, *args, flush: bool = True, **others):
            super().info(msg, *args, **others)

    return replaced(trainer_separate_async, "logger", Log(trainer_separate_async.logger))


def attention_without_cudnn(backends) -> None:
    """`scaled_dot_product_attention` no longer chooses cuDNN in this process. `backends` is `torch.backends.cuda`.

    From torch 2.11 on, which veRL 0.9.1 pins, it is the first choice on Hopper and Blackwell (sm90, sm100). With a mask
    its backward gives NaN for queries where the length is 64 mod 128 (pytorch 196678); veRL then skips the step with a
    warning. It also builds a plan for each new shape, up to half a second each, and nearly every pass has a new one.
    Flash and memory-efficient attention stay; on a CPU nothing changes.
    """
    backends.enable_cudnn_sdp(False)
