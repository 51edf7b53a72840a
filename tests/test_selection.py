"""Rows without gradient stay out of the actor, and the gradient stays the same: veRL's own aggregation decides."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_verl.advantage import gpg_advantage
from gpg_verl.check import compose
from gpg_verl.config import settle
from gpg_verl.selection import SAME_DENOMINATOR, TOKEN_MEAN, select_rows, why_rows_stay

MODES = TOKEN_MEAN + SAME_DENOMINATOR


@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(0, 50)), min_size=1, max_size=60),
    ranks=st.sampled_from([1, 2, 4]),
    micro=st.sampled_from([None, 1, 2, 3, 8]),
)
def test_the_grid_is_filled_with_rows_of_the_batch(rows, ranks, micro):
    """Whatever veRL would accept as a whole batch gives a part that it accepts too."""
    grid = ranks * (micro or 1)
    rows = rows + [(False, 0)] * (-len(rows) % grid)
    valid, tokens = [v and t > 0 for v, t in rows], [t for _, t in rows]
    selection = select_rows(valid, tokens, ranks=ranks, micro_batch_size=micro, loss_agg_mode="token-mean")
    chosen = selection.rows
    assert chosen == sorted(set(chosen))
    assert {i for i, v in enumerate(valid) if v} <= set(chosen)
    if not any(valid):
        assert chosen == []
        return
    assert len(chosen) % (ranks * (selection.micro_batch_size or 1)) == 0
    assert len(chosen) <= len(rows)
    assert micro is None or selection.micro_batch_size <= micro
    passes = len(chosen) // ranks // (selection.micro_batch_size or 1)
    assert len(chosen) - sum(valid) < ranks * (passes if micro else 1)
    assert selection.factor == pytest.approx(sum(tokens[i] for i in chosen) / sum(tokens))


def actor_gradient(rows, advantages, mask, log_prob_of, parameters, mode, micro, whole_batch):
    """What an actor does with `rows`: veRL's loss per micro-batch over the denominators of what it was given."""
    from gpg_verl.registry import gpg_policy_loss

    for parameter in parameters:
        parameter.grad = None
    info = {
        "dp_size": 1,
        "batch_num_tokens": mask[rows].sum(),
        "global_batch_size": whole_batch,
        "loss_scale_factor": 10,
    }
    for part in torch.tensor(rows).split(micro):
        loss, _ = gpg_policy_loss(
            None, log_prob_of(part), advantages[part], mask[part], mode, SimpleNamespace(global_batch_info=info)
        )
        loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


@pytest.mark.parametrize("alpha", ["sample", "token", "none"])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    right=st.lists(st.integers(0, 4), min_size=2, max_size=5).filter(lambda groups: any(0 < g < 4 for g in groups)),
)
def test_the_gradient_is_that_of_the_whole_batch(mode, alpha, seed, right):
    """Groups with 0 to 4 right answers of 4, interleaved, responses of different lengths, a small network in fp64."""
    generator = torch.Generator().manual_seed(seed)
    count, width, vocabulary = 4 * len(right), 6, 5
    rewards_of = torch.tensor([float(k < g) for g in right for k in range(4)])
    uid = [f"prompt {i // 4}" for i in range(count)]
    order = torch.randperm(count, generator=generator).tolist()
    lengths = torch.randint(1, width + 1, (count,), generator=generator)
    mask = (torch.arange(width) < lengths[:, None]).long()
    rewards = torch.zeros(count, width, dtype=torch.float64)
    rewards[torch.arange(count), lengths - 1] = rewards_of[order].double()
    advantages, _, statistics = gpg_advantage(rewards, mask, [uid[i] for i in order], f_norm="1", alpha=alpha)

    inputs = torch.randn(count, width, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocabulary, (count, width), generator=generator)
    weight = torch.randn(3, vocabulary, generator=generator, dtype=torch.float64, requires_grad=True)

    def log_prob_of(part):
        return torch.log_softmax(inputs[part] @ weight, -1).gather(-1, labels[part][..., None])[..., 0]

    selection = select_rows(
        statistics.valid.tolist(), lengths.tolist(), ranks=1, micro_batch_size=4, loss_agg_mode=mode
    )
    whole = actor_gradient(list(range(count)), advantages, mask, log_prob_of, [weight], mode, 4, count)
    part = actor_gradient(
        selection.rows,
        advantages * selection.factor,
        mask,
        log_prob_of,
        [weight],
        mode,
        selection.micro_batch_size,
        count,
    )
    assert torch.linalg.norm(part - whole) <= 1e-6 * torch.linalg.norm(whole)
    # The comparison notices a wrong scale: α doubled, or the factor left out where tokens were dropped.
    assert not torch.allclose(2 * part, whole, rtol=1e-3)
    if selection.factor < 0.99:
        assert not torch.allclose(part / selection.factor, whole, rtol=1e-3)


GPG = [
    "algorithm.adv_estimator=gpg",
    "data.train_batch_size=64",
    "actor_rollout_ref.actor.ppo_mini_batch_size=64",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.n=8",
]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("trainer.total_epochs=1", None),
        ("actor_rollout_ref.actor.strategy=fsdp2", None),
        ("actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean", None),
        ("actor_rollout_ref.actor.entropy_coeff=0.01", "entropy bonus"),
        ("actor_rollout_ref.actor.use_kl_loss=True", "use_kl_loss=True gives every row"),
        ("algorithm.use_kl_in_reward=True", "use_kl_in_reward=True gives every row"),
        ("distillation.enabled=True", "distillation.enabled=True"),
        ("actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm", "padded width"),
        ("algorithm.rollout_correction.rollout_rs=token_k1", "rejection sampling"),
        ("actor_rollout_ref.actor.ppo_mini_batch_size=32", "several updates"),
        ("actor_rollout_ref.actor.ppo_epochs=2", "several updates"),
    ],
)
def test_rows_stay_where_something_else_needs_them(override, reason):
    import verl  # noqa: F401

    overrides = [*GPG, override, "+algorithm.gpg.allow_kl=True"]
    config = compose(overrides)
    result = settle(config, overrides)
    assert result.contradictions == []
    found = why_rows_stay(config)
    assert found is None if reason is None else reason in found
    assert any("rows of zero-variance groups go through the actor too" in n for n in result.notices) == bool(reason)
