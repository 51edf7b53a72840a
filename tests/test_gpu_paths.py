"""The combinations that GPUs take, on a CPU: veRL's engine with its GPU defaults, over gpu_stand_ins.py. The
gradient is that of the definition and of veRL's own update on all rows.

A core in every run of the suite; the others, marked `gpu_others`, where CI is set (tests/run.sh).
"""

from __future__ import annotations

import gpu_stand_ins
import pytest
import torch
from exactness import (
    ACTOR,
    ALL_VALID,
    CORRECTION,
    MIXED,
    PROMPTS,
    assert_same,
    by_definition,
    difference,
    recording,
    settled,
    step,
    without_shortcut,
)

from gpg_verl.training import attention

MODEL, ROLLOUT, FSDP = "actor_rollout_ref.model", "actor_rollout_ref.rollout", f"{ACTOR}.fsdp_config"
TOKENS = 48  # of a micro-batch; a row has up to 22

PACKED = [f"{MODEL}.use_remove_padding=True", f"{MODEL}.override_config.attn_implementation=flash_attention_2"]
DYNAMIC = [
    setting
    for part, tokens in (
        (ACTOR, "ppo_max_token_len_per_gpu"),
        (ROLLOUT, "log_prob_max_token_len_per_gpu"),
        ("actor_rollout_ref.ref", "log_prob_max_token_len_per_gpu"),
    )
    for setting in (
        f"{part}.{'' if part == ACTOR else 'log_prob_'}use_dynamic_bsz=True",
        f"{part}.{tokens}={TOKENS}",
    )
]
CHECKPOINTING = [f"{MODEL}.enable_gradient_checkpointing=True"]
OFFLOAD = [f"{FSDP}.param_offload=True", f"{FSDP}.optimizer_offload=True"]
GPU = [*PACKED, *DYNAMIC, *CHECKPOINTING, *OFFLOAD]
FSDP1 = [f"{ACTOR}.strategy=fsdp"]
FUSED = [f"{MODEL}.use_fused_kernels=True", f"{MODEL}.fused_kernel_options.impl_backend=torch"]
ENTROPY = [f"{ACTOR}.calculate_entropy=True"]
ROW_BY_ROW = ["+algorithm.gpg.share_prefixes=False"]
LORA = [f"{MODEL}.lora_rank=4", f"{MODEL}.lora_alpha=8", f"{MODEL}.target_modules=all-linear"]


def parts(number: int) -> list[str]:
    return [f"{FSDP}.ulysses_sequence_parallel_size={number}"]


@pytest.fixture(autouse=True)
def flash_for_these_alone(monkeypatch):
    """What the stand-ins set in this process."""
    monkeypatch.setattr(attention, "supports_flash", attention.supports_flash)


@pytest.fixture
def compare(tiny_folder):
    """compare(settings): ours against veRL's own update on all rows, and against the definition; returns our result."""

    def compare(settings, ranks=1, updates=1, rewards=MIXED, prepare=gpu_stand_ins.install, sharded=False, **shape):
        from actors import Actors

        settings = [*settings, f"{ACTOR}.ppo_mini_batch_size={PROMPTS // updates}"]
        config, rollouts = settled(tiny_folder, *settings), recording(rewards, seed=3, **shape)
        definition = by_definition(tiny_folder, rollouts) if updates == 1 else None
        with Actors(config, ranks, prepare) as actors:
            actors.call("record_gradients", *[(0.1,)] * ranks)
            whole = step(actors, config, rollouts, without_shortcut(updates))
            part = step(actors, config, rollouts)
        assert_same(part.gradients, [g for g in whole.gradients if g.any()])
        assert difference(part.parameters, whole.parameters) <= 1e-6
        assert part.scheduled == 1
        if definition is not None and not sharded:
            assert_same(part.gradients, [definition])
        if definition is not None:
            assert part.metrics["actor/grad_norm"] == pytest.approx(torch.linalg.norm(definition).item(), rel=1e-5)
        return part

    return compare


others = pytest.mark.gpu_others


# ---- the core


def test_gpu_defaults(compare):
    """Packed rows, dynamic micro-batches, checkpointing, offload; an update's passes are over trees, and row by row."""
    part = compare(GPU)
    assert part.metrics["gpg/tokens_shared"]
    assert part.trainer.unsupported == {"trees": None, "rows": None}


def test_gpu_defaults_of_several_updates_and_workers(compare):
    part = compare(GPU, ranks=2, updates=4)
    assert part.metrics["gpg/updates"] > 1


def test_fsdp1(compare):
    """veRL's default. Its parameters are flat, in another order than the model's."""
    part = compare([*GPU, *FSDP1], updates=4, prepare=gpu_stand_ins.install_fsdp1)
    assert part.metrics["gpg/tokens_shared"]


@pytest.mark.parametrize("more", [ENTROPY, [*ENTROPY, f"{FSDP}.entropy_checkpointing=True"]], ids=["plain", "kept"])
def test_the_entropy_of_the_log_changes_nothing(compare, more):
    part = compare([*PACKED, *DYNAMIC, *more])
    assert part.metrics["actor/entropy"] > 0


def test_ulysses(compare):
    """Two workers have the halves of a sequence; passes are veRL's own, entropy checkpointed."""
    part = compare([*PACKED, *DYNAMIC, *parts(2), *ENTROPY, f"{FSDP}.entropy_checkpointing=True"], ranks=2)
    assert "cuts sequences into parts" in part.trainer.unsupported["rows"]
    assert part.metrics["actor/entropy"] > 0


# ---- the others


@others
@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ([*GPU, *ROW_BY_ROW], {}),
        ([*PACKED, *ROW_BY_ROW], {"updates": 4}),  # static micro-batches of packed rows
        ([*GPU, *FSDP1], {"ranks": 2, "prepare": gpu_stand_ins.install_fsdp1, "sharded": True}),
        ([*PACKED, *DYNAMIC, *FUSED, *ENTROPY, *parts(2)], {"ranks": 2}),
        ([*PACKED, *DYNAMIC, *parts(2)], {"ranks": 4, "rewards": [[1, 0, 0, 0], *[[0] * 4] * 7]}),
        (GPU, {"ranks": 2, "rewards": [[1, 0, 0, 0], *[[0] * 4] * 7]}),
        ([*PACKED, *DYNAMIC, *ENTROPY, f"{FSDP}.entropy_from_logits_with_chunking=True"], {}),
        ([*GPU, *LORA], {"ranks": 2, "updates": 4}),
    ],
    ids=[
        "row by row",
        "static micro-batches",
        "FSDP1, two workers",
        "Ulysses, fused kernels",
        "Ulysses beside data parallel ranks",
        "one valid group, two workers",
        "entropy in chunks",
        "LoRA, two workers",
    ],
)
def test_others(compare, settings, more):
    compare(settings, **more)


@others
@pytest.mark.parametrize("shared", [True, False], ids=["trees", "rows"])
def test_static_micro_batches_are_no_larger_than_verls(tiny_folder, monkeypatch, shared):
    """Rows that share little but their prompts, of very different lengths, four to a pass; of old log-probs too."""
    from actors import Actors

    static = [f"{ACTOR}.ppo_micro_batch_size_per_gpu=4", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=4"]
    more = [f"{CORRECTION}.bypass_mode=False", f"+algorithm.gpg.share_prefixes={shared}"]
    config = settled(tiny_folder, *PACKED, *static, *more)
    rollouts, tokens = recording(ALL_VALID, seed=3, prompt=2, response=(1, 40), words=20), []
    with Actors(config, 1, gpu_stand_ins.install) as actors:
        actors.call("record_gradients", (0.1,))
        whole = step(actors, config, rollouts, without_shortcut(1))
        monkeypatch.setattr("gpg_verl.training.self_check.SelfCheck.due", lambda *args: False)
        actors.local.engine.module.register_forward_pre_hook(
            lambda module, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        step(actors, config, rollouts, without_shortcut(1))
        verls = max(tokens)
        tokens.clear()
        part = step(actors, config, rollouts)
    assert_same(part.gradients, whole.gradients)
    assert bool(part.metrics["gpg/tokens_shared"]) == shared
    assert max(tokens) <= verls


@others
@pytest.mark.parametrize("ranks", [1, 2])
def test_bf16(tiny_folder, ranks):
    """No exactness in 8 bits: near the definition, and not much farther from it than veRL's own update."""
    from actors import Actors

    config = settled(tiny_folder, *GPU, f"{FSDP}.mixed_precision.param_dtype=bf16")
    rollouts = recording(ALL_VALID, seed=3)
    definition = by_definition(tiny_folder, rollouts)
    with Actors(config, ranks, gpu_stand_ins.install) as actors:
        actors.call("record_gradients", *[(0.1,)] * ranks)
        (verls,) = step(actors, config, rollouts, without_shortcut(1)).gradients
        part = step(actors, config, rollouts)
    assert part.metrics["gpg/tokens_shared"]
    (ours,) = part.gradients
    assert 1e-4 < difference(ours, definition) <= max(0.01, 1.5 * difference(verls, definition))
    assert torch.linalg.norm(ours).item() == pytest.approx(torch.linalg.norm(definition).item(), rel=0.01)


@others
def test_a_rank_of_filler_only(tiny_folder):
    """Two rows with a gradient on three workers: one has none, and all make as many passes."""
    from actors import Actors

    rollouts = recording([[1, 0], *[[0, 0]] * 11], seed=3)
    definition = by_definition(tiny_folder, rollouts)
    for more in ([], ROW_BY_ROW):
        config = settled(tiny_folder, *GPU, *more)
        with Actors(config, 3, gpu_stand_ins.install) as actors:
            actors.call("record_gradients", *[(0.1,)] * 3)
            assert_same(step(actors, config, rollouts).gradients, [definition])


@others
def test_qwen2_vl(tiny_vision_folder):
    """On two workers, by Ulysses and each for itself: veRL changes the model's class in the process that makes one."""
    from actors import Actors
    from test_exactness_vision import MODE
    from test_exactness_vision import recording as with_images

    rollouts = with_images(tiny_vision_folder, text_only=(0, 2), seed=3)
    longest = max(tag["seq_len"] for tag in rollouts.tags.values())
    definition = by_definition(tiny_vision_folder, rollouts, mode=MODE)
    dynamic = [setting.replace(f"={TOKENS}", f"={3 * longest}") for setting in DYNAMIC]
    for parallel in (1, 2):
        settings = [f"{ACTOR}.loss_agg_mode={MODE}", *PACKED, *dynamic, *parts(parallel)]
        config = settled(tiny_vision_folder, *settings)
        with Actors(config, 2, gpu_stand_ins.install_for_qwen2_vl) as actors:
            actors.call("record_gradients", *[(0.1,)] * 2)
            assert_same(step(actors, config, rollouts).gradients, [definition])


# ---- these tests can fail


def test_the_comparison_notices_rows_that_see_each_other(compare, monkeypatch):
    """Flash attention that takes the packed rows of a pass for one: then veRL's gradient is not the definition's."""

    def as_one_row(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, deterministic=False, **others,
    ):  # fmt: skip
        return gpu_stand_ins.flash_attn_func(q[None], k[None], v[None], causal=causal)[0]

    monkeypatch.setattr(gpu_stand_ins, "flash_attn_varlen_func", as_one_row)
    with pytest.raises(AssertionError):
        compare([*PACKED, *DYNAMIC, *ROW_BY_ROW])
