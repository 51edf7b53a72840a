"""Before the first update: are the passes that share prefixes exact with this model?"""

from __future__ import annotations

import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id

from gpg_verl.training.passes import Passes

# How far log-probs (the mean of their differences, in nats) and gradients (the norm of the difference over the norm)
# may be apart, computed both ways: far above what rounding does, below what a token in sight too many does.
TOLERANCE = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (0.05, 0.2), torch.float16: (0.02, 0.1)}


def why_not_exact(passes: Passes, *, trees: bool, use_remove_padding: bool) -> str | None:
    """Computes a few rows of random tokens veRL's way and this one, forward and backward; why the two differ, or None.
    All ranks call it together. Parameters and optimizer stay as they are.
    """
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

    calls = passes.attention.calls
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
    if trees and passes.attention.calls == calls:
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
