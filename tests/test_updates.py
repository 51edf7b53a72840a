"""Which rows an update computes, and when all of them: tables and properties. Gradients: test_exactness.py."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpg_verl.algorithm.updates import assign, balance_rows, plan_updates
from gpg_verl.launch.check import compose
from gpg_verl.launch.settle import settle
from gpg_verl.training.shortcuts import other_loss_term, passes_in_groups, unsupported, updates_per_batch


def plan(mini_batches, has_gradient, tokens, *, spare=0, ranks=1, micro_batch_size=None, work=None, mode=None, **more):
    """The updates, with `spare` rows of padding behind the rows; and how many rows the grid lacks beside those."""
    size = len(tokens) + spare
    updates = plan_updates(
        mini_batches,
        list(range(len(tokens), size)),
        [*has_gradient, *[False] * spare],
        [*tokens, *[0] * spare],
        ranks=ranks,
        micro_batch_size=micro_batch_size,
        loss_agg_mode=mode or "token-mean",
        work=[*(work or [1.0] * len(tokens)), *[1.0] * spare],
        **more,
    )
    used = [i for update in updates for rows in update.rows for i in rows]
    return updates, max(0, max(used, default=0) + 1 - size)


GROUPS = st.lists(st.integers(1, 5), min_size=1, max_size=20)  # rows of each group


@settings(deadline=None)
@given(groups=GROUPS, updates=st.integers(1, 6))
def test_mini_batches_are_whole_groups(groups, updates):
    uids = [f"uid{g:03d}" for g, size in enumerate(groups) for _ in range(size)]
    mini_batches = assign(uids, updates)
    assert len(mini_batches) == updates  # however many rows there are
    assert sorted(i for rows in mini_batches for i in rows) == list(range(len(uids)))
    members = [{uids[i] for i in rows} for rows in mini_batches]
    assert sum(map(len, members)) == len(groups)
    assert max(map(len, members)) - min(map(len, members)) <= 1
    # The order of the rows, which is that of finishing, plays no part.
    turned = assign(uids[::-1], updates)
    assert [{uids[::-1][i] for i in rows} for rows in turned] == members


@settings(deadline=None)
@given(work=st.lists(st.integers(1, 100), min_size=4, max_size=60), ranks=st.sampled_from([1, 2, 4]))
def test_ranks_get_as_many_rows_and_about_as_much_work(work, ranks):
    rows = list(range(len(work) // ranks * ranks))
    parts = balance_rows(rows, work, ranks)
    assert sorted(i for part in parts for i in part) == rows
    assert len({len(part) for part in parts}) == 1
    loads = [sum(work[i] for i in part) for part in parts]
    assert max(loads) - min(loads) <= max(work)
    assert all([work[i] for i in part] == sorted(work[i] for i in part) for part in parts)


def test_ranks_are_balanced_by_layers_attention_and_scored_positions():
    """Two rows of one length a rank; by tokens alone any would do."""
    from gpg_verl.training.trainer import work

    assert work([10, 20]) == [10 * 24576 + 100, 20 * 24576 + 400]
    costs = work([1000] * 4, [900, 800, 100, 0])
    assert balance_rows(range(4), costs, 2) == [[3, 0], [2, 1]]
    assert costs[0] - costs[3] == pytest.approx(900 / 1000 * (costs[3] - 1000**2) * 152_064 / (2 * 28 * 24576))


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(1, 50), st.integers(0, 3)), min_size=1, max_size=60),
    padding=st.integers(0, 5),
    ranks=st.sampled_from([1, 2, 4]),
    micro=st.sampled_from([None, 1, 2, 3, 8]),
    groups=st.sampled_from([1, 2, 4]),
)
def test_updates_are_the_rows_with_a_gradient_and_a_full_grid(rows, padding, ranks, micro, groups):
    """`groups`: virtual pipeline stages take as many passes at a time."""
    valid, tokens = ([row[column] for row in rows] for column in (0, 1))
    mini_batches = [[i for i, (_, _, k) in enumerate(rows) if k == update] for update in range(4)]
    updates, missing = plan(
        mini_batches, valid, tokens, spare=padding, ranks=ranks, micro_batch_size=micro, passes_in_groups=groups
    )
    with_gradient = [[i for i in rows if valid[i]] for rows in mini_batches]
    expected = [(mini, kept) for mini, kept in zip(mini_batches, with_gradient, strict=True) if kept]
    assert len(updates) == len(expected)
    used = [i for update in updates for part in update.rows for i in part]
    assert len(used) == len(set(used))
    assert not missing or len(used) == len(tokens) + padding + missing  # what is asked for is enough, none is left over
    for update, (mini_batch, kept) in zip(updates, expected, strict=True):
        chosen = [i for part in update.rows for i in part]
        assert set(kept) <= set(chosen)
        real = [i for i in chosen if i < len(tokens)]
        assert not any(valid[i] for i in set(real) - set(kept))
        assert len({len(part) for part in update.rows}) == 1
        assert len(update.rows) == ranks
        per_rank = len(update.rows[0])
        if micro is not None:
            assert update.micro_batch_size <= micro
            assert per_rank % update.micro_batch_size == 0
            # No group of passes more than the rows need, and fewer than one row a pass and rank to fill it.
            passes = per_rank // update.micro_batch_size
            assert passes == groups * math.ceil(math.ceil(len(kept) / ranks) / micro / groups)
            assert len(chosen) - len(kept) < ranks * (passes + 1)
        else:
            assert per_rank % groups == 0
            assert len(chosen) - len(kept) < ranks * groups
        assert update.sequences == len(mini_batch)
        assert update.factor == pytest.approx(sum(tokens[i] for i in real) / sum(tokens[i] for i in mini_batch))


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    ranks=st.sampled_from([1, 2]),
    micro=st.sampled_from([None, 1, 3]),
    stages=st.sampled_from([2, 4]),
)
def test_virtual_pipeline_stages_get_whole_groups_of_passes(tokens, ranks, micro, stages):
    """By veRL's own cut of a rank's rows, of which Megatron's engine asks just that (veRL 0.9.1)."""
    import torch
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine.utils import prepare_micro_batches

    rows = list(range(len(tokens)))
    shape = {"ranks": ranks, "micro_batch_size": micro, "passes_in_groups": stages}
    (update,), missing = plan([rows], [True] * len(rows), tokens, work=tokens, **shape)
    lengths = tokens + [1] * missing
    for part in update.rows:
        ids = torch.nested.as_nested_tensor([torch.zeros(lengths[i]) for i in part], layout=torch.jagged)
        data = TensorDict({"input_ids": ids}, batch_size=len(part))
        size = {"micro_batch_size_per_gpu": update.micro_batch_size, "max_token_len_per_gpu": 64}
        tu.assign_non_tensor(data, use_dynamic_bsz=micro is None, sp_size=1, **size)
        passes, _ = prepare_micro_batches(data, dp_group=None, num_batches_divided_by=stages)
        assert len(passes) % stages == 0


@settings(deadline=None)
@given(
    groups=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=12),
    ranks=st.sampled_from([1, 2, 4]),
)
def test_rows_of_a_prompt_stay_together_where_a_rank_has_room(groups, ranks):
    """100 of a prompt's work is done once for all of its rows on a rank."""
    prompts = [(f"uid{g}", 100.0) for g, group in enumerate(groups) for _ in group]
    work = [100.0 + tokens for group in groups for tokens in group]
    rows, padding = list(range(len(work))), [("padding", 1.0)] * ranks
    (update,), _ = plan([rows], [True] * len(rows), [1] * len(rows), ranks=ranks, work=work, prompts=prompts + padding)
    assert sorted(update.computed()) == rows
    assert update.factor == 1
    assert {len(part) for part in update.rows} == {math.ceil(len(rows) / ranks)}
    places = {prompts[i][0]: set() for i in rows}
    for rank, (part, idle) in enumerate(zip(update.rows, update.filling, strict=True)):
        for i in part[: len(part) - idle]:
            places[prompts[i][0]].add(rank)
    assert sum(map(len, places.values())) <= len(groups) + ranks - 1  # a cut for each rank that is full


@pytest.mark.parametrize(("packed", "largest"), [(True, 8 + 4), (False, 8 + 7)])
def test_a_packed_pass_has_rows_long_and_short(packed, largest):
    tokens = [1, 2, 3, 4, 5, 6, 7, 8]
    (update,), _ = plan([list(range(8))], [True] * 8, tokens, micro_batch_size=2, work=tokens, packed=packed)
    (rows,) = update.rows
    assert max(sum(tokens[i] for i in rows[at : at + 2]) for at in range(0, 8, 2)) == largest


@pytest.mark.parametrize("mode", ["token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_only_a_token_mean_needs_a_factor(mode):
    updates, _ = plan([[0, 1]], [True, False], [3, 4], micro_batch_size=2, mode=mode)
    assert [update.factor for update in updates] == [1.0]
    assert [update.rows for update in updates] == [[[0]]]


def test_a_mini_batch_without_a_policy_token_has_an_update_if_anything_gives_it_a_gradient():
    """An entropy bonus does, of every row."""
    shape = {"ranks": 1, "micro_batch_size": 2, "loss_agg_mode": "token-mean", "work": [1, 1, 1]}
    updates = plan_updates([[0], [1, 2]], [], [True] * 3, [0, 3, 4], **shape)
    assert [update.factor for update in updates] == [1.0, 1.0]


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
        ("algorithm.rollout_correction.rollout_rs=token_k1", None),
        ("actor_rollout_ref.actor.ppo_mini_batch_size=32", None),
        ("actor_rollout_ref.actor.ppo_epochs=2", None),
    ],
)
def test_rows_stay_where_something_else_needs_them(override, reason):
    import verl  # noqa: F401

    overrides = [*GPG, override, "+algorithm.gpg.allow_kl=True"]
    config = compose(overrides)
    result = settle(config, overrides)
    assert result.contradictions == []
    found = unsupported(config)["dropped_rows"]
    assert found is None if reason is None else reason in found
    assert any("rows of zero-variance groups go through the actor too" in n for n in result.notices) == bool(reason)


@pytest.mark.parametrize(
    ("overrides", "updates"),
    [
        ([], 1),
        (["actor_rollout_ref.actor.ppo_mini_batch_size=16"], 4),
        (["actor_rollout_ref.actor.ppo_mini_batch_size=128"], 1),
        (
            [
                "trainer.v1.trainer_mode=separate_async",
                "trainer.v1.separate_async.parameter_sync_step=4",
                "actor_rollout_ref.actor.ppo_mini_batch_size=16",
            ],
            1,  # of each local batch
        ),
    ],
)
def test_updates_per_batch(overrides, updates):
    import verl  # noqa: F401

    assert updates_per_batch(compose([*GPG, *overrides])) == updates


MEGATRON = ("actor_rollout_ref.actor.megatron.pipeline_model_parallel_size=4",)
VIRTUAL = "actor_rollout_ref.actor.megatron.virtual_pipeline_model_parallel_size"
TRANSFORMER = "+actor_rollout_ref.actor.megatron.override_transformer_config"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], 1),
        ([f"{VIRTUAL}=1"], 1),
        ([f"{VIRTUAL}=2"], 4),  # as many as there are stages
        ([f"{VIRTUAL}=2", f"{TRANSFORMER}.microbatch_group_size_per_vp_stage=8"], 8),
    ],
)
def test_passes_in_groups(overrides, expected):
    import verl  # noqa: F401

    assert passes_in_groups(compose([*GPG, *MEGATRON, *overrides], config_name="ppo_megatron_trainer")) == expected
    assert passes_in_groups(compose(GPG)) == 1


@pytest.mark.parametrize(
    ("model", "overrides", "reason"),
    [
        ("llama", [], None),
        ("llama", [f"{TRANSFORMER}.moe_z_loss_coeff=0.001"], None),  # no router
        ("mixtral", [], "moe_aux_loss_coeff"),
        ("mixtral", [f"{TRANSFORMER}.moe_aux_loss_coeff=0"], None),
        ("mixtral", [f"{TRANSFORMER}.moe_aux_loss_coeff=0", f"{TRANSFORMER}.moe_z_loss_coeff=0"], None),
        (
            "mixtral",
            [f"{TRANSFORMER}.moe_aux_loss_coeff=0", f"{TRANSFORMER}.moe_z_loss_coeff=0.001"],
            "moe_z_loss_coeff=0.001",
        ),
    ],
)
def test_a_routers_loss_keeps_every_row(tmp_path, model, overrides, reason):
    import verl  # noqa: F401
    from transformers import AutoConfig

    AutoConfig.for_model(model).save_pretrained(tmp_path)
    overrides = [*GPG, f"actor_rollout_ref.model.path={tmp_path}", *overrides]
    found = other_loss_term(compose(overrides, config_name="ppo_megatron_trainer"))
    assert found is None if reason is None else reason in found
