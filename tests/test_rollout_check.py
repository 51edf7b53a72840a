"""How far trainer and rollout may be apart, and what is said. With real models: test_exactness_vision.py."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gpg_verl.training.agreement import FARTHEST, Gap
from gpg_verl.training.rollout_check import BF16_GAP, FP32_GAP, RolloutCheck

ROLLOUT = {
    "calculate_log_probs": True,
    "logprobs_mode": "processed_logprobs",
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "dtype": "float32",
    "load_format": "dummy",
    "quantization": None,
}
TRAINER = {"strategy": "fsdp2", "fsdp_config": {"mixed_precision": {"param_dtype": "fp32"}}}


def check(max_gap=None, corrected=False, not_seen=None, actor=TRAINER, **rollout) -> RolloutCheck:
    config = OmegaConf.create({"actor_rollout_ref": {"actor": actor, "rollout": {**ROLLOUT, **rollout}}})
    return RolloutCheck(config, max_gap, corrected, not_seen)


def differences(spread: float, tokens: int = 2400) -> torch.Tensor:
    return spread * torch.randn(tokens, generator=torch.Generator().manual_seed(0))


def gap_of(apart: torch.Tensor) -> float:
    return Gap.of(list(apart.split(100))).root_mean_square


@pytest.mark.parametrize("outliers", [0, 3, 40])
def test_single_tokens_far_apart_do_not_end_a_healthy_run(outliers):
    """Healthy in bf16: up to 0.07 nats (docs/vision.md). Three tokens 5 nats off are 0.19 of the plain measure."""
    seen = differences(0.07)
    seen[:outliers] = 5.0
    assert gap_of(seen) <= 0.08 < BF16_GAP
    assert outliers == 0 or seen.square().mean().sqrt() > BF16_GAP


@pytest.mark.parametrize(("share", "apart"), [(1.0, 0.2), (0.3, 0.5), (0.1, 1.0)])
def test_a_difference_of_many_tokens_does(share, apart):
    seen = differences(0.03)
    seen[: int(share * len(seen))] += apart
    assert gap_of(seen) > BF16_GAP


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=300))
def test_it_is_the_root_mean_square_of_the_nearest(values):
    nearest = sorted(abs(value) for value in values)[: max(1, int(len(values) * (1 - FARTHEST)))]
    expected = math.sqrt(sum(value**2 for value in nearest) / len(nearest))
    gap = Gap.of(list(torch.tensor(values, dtype=torch.float64).split(7)))
    assert gap.root_mean_square == pytest.approx(expected, abs=1e-12)
    assert gap[1:] == (max(map(abs, values)), len(values), math.ceil(len(values) / 7))
    assert math.isnan(Gap.of([torch.tensor([0.0, math.nan])]).root_mean_square)


def gap(nats: float) -> Gap:
    return Gap(nats, 2 * nats, 100, 8)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({}, FP32_GAP),
        ({"dtype": "bfloat16"}, BF16_GAP),
        ({"actor": {**TRAINER, "fsdp_config": {}}}, BF16_GAP),
        ({"actor": {"strategy": "megatron"}}, BF16_GAP),
        ({"max_gap": 2.0}, 2.0),
    ],
)
def test_what_is_allowed(settings, allowed, capsys):
    check(**settings)({"text": gap(allowed)})
    assert f"agree on text: their log-probs are {allowed:.2g} apart" in capsys.readouterr().out
    for nats in (1.01 * allowed, math.nan):
        with pytest.raises(RuntimeError, match=f"of 100 response tokens of 8 rows; .* allowed is {allowed:g}"):
            check(**settings)({"text": gap(nats)})


@pytest.mark.parametrize(
    ("kind", "settings", "parts"),
    [
        ("images", {}, ["answers to other images", "set actor_rollout_ref.rollout.load_format=auto"]),
        ("images", {"load_format": "auto", "corrected": True}, ["load_format=auto is not the cause", "min_pixels"]),
        ("images", {"quantization": "fp8"}, ["answers to other images"]),
        ("text", {}, ["samples from other weights", "load_format=dummy"]),
    ],
)
def test_a_disagreement_says_what_happened_and_what_to_do(kind, settings, parts):
    always = ["One update was made; nothing of it was saved or sent", "vllm ", "+algorithm.gpg.max_rollout_gap"]
    with pytest.raises(RuntimeError) as error:
        check(**settings)({kind: gap(1.0)})
    assert [part for part in [f"disagree on {kind}", *parts, *always] if part not in str(error.value)] == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"quantization": "fp8"}, "quantization=fp8"), ({"corrected": True}, "rollout_correction corrects for it")],
)
def test_a_difference_of_text_that_is_expected_is_a_warning(settings, reason, capsys):
    check(**settings)({"text": gap(1.0)})
    out = capsys.readouterr().out
    assert "WARNING: trainer and rollout disagree on text" in out
    assert reason in out


def test_each_kind_is_judged_once():
    seen = check()
    seen({})
    assert seen.kinds == {"text", "images"}
    seen({"text": gap(0.0)})
    assert seen.kinds == {"images"}
    seen({"text": gap(1.0), "images": gap(0.0)})  # later, the rollout may lag behind
    assert seen.kinds == set()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"calculate_log_probs": False}, "calculate_log_probs=False"),
        ({"top_p": 0.9}, "top_p=0.9"),
        ({"top_k": 20}, "top_k=20"),
        ({"logprobs_mode": "raw_logprobs", "temperature": 0.7}, "raw_logprobs with temperature=0.7"),
        ({"not_seen": "distillation.enabled=True"}, "distillation.enabled=True"),
        ({"logprobs_mode": "raw_logprobs", "top_p": 0.9}, None),
        ({"temperature": 0.7}, None),
    ],
)
def test_log_probs_that_cannot_be_compared_are_named(settings, reason, capsys):
    seen = check(**settings)
    assert (seen.kinds == set()) == (reason is not None)
    out = capsys.readouterr().out
    assert ("are not compared: " in out and reason in out) if reason else out == ""
