"""Every shortcut leaves the gradient as it is: real trainer steps on recorded rollouts, fp32, with and without it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from exactness import (
    ACTOR,
    ALL_VALID,
    CORRECTION,
    MIXED,
    PROMPTS,
    RIGHT,
    WRONG,
    N,
    assert_same,
    by_definition,
    difference,
    recording,
    settled,
    step,
    without_shortcut,
)
from omegaconf import OmegaConf

from gpg_verl.guards.rewards import NoReward

NAN = float("nan")


@pytest.mark.parametrize("updates", [1, 4], ids=["K=1", "K=4"])
@pytest.mark.parametrize("alpha", ["sample", "token", "none"])
@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_rows_without_gradient_are_left_out(actors, tiny_folder, mode, alpha, updates):
    config = settled(
        tiny_folder,
        f"+algorithm.gpg.alpha={alpha}",
        f"{ACTOR}.loss_agg_mode={mode}",
        f"{ACTOR}.ppo_mini_batch_size={PROMPTS // updates}",
    )
    rollouts = recording(seed=updates)
    whole = step(actors, config, rollouts, without_shortcut(updates))
    part = step(actors, config, rollouts)
    assert part.metrics["gpg/rows_dropped"] >= 8
    assert part.metrics["gpg/tokens_shared"]
    # A mini-batch without a valid row has a gradient of zero: veRL steps on it, we do not.
    expected = [g for g in whole.gradients if g.any()]
    assert_same(part.gradients, expected)
    assert part.metrics["gpg/updates"] == len(expected)
    assert {"global_seqlen/min", "global_seqlen/max", "global_seqlen/balanced_max"} <= part.metrics.keys()
    assert difference(part.parameters, whole.parameters) <= 1e-6
    assert part.scheduled == 1  # once a rollout batch, however many updates


def test_a_mini_batch_without_a_valid_row_makes_no_step(one, tiny_folder):
    config = settled(tiny_folder, f"{ACTOR}.ppo_mini_batch_size=2")
    result = step(one, config, recording([*ALL_VALID[:6], WRONG, RIGHT]))  # groups by uid: the last update has none
    assert len(result.gradients) == result.metrics["gpg/updates"] == 3
    assert result.scheduled == 1
    assert result.metrics["gpg/alpha"] == pytest.approx(8 / 6)  # of the rollout batch


@pytest.mark.parametrize("mistake", ["alpha doubled", "factor left out"])
def test_the_comparison_notices(one, tiny_folder, monkeypatch, mistake):
    import gpg_verl.training.trainer as trainer

    config, rollouts = settled(tiny_folder), recording()
    whole = step(one, config, rollouts, without_shortcut(1))
    if mistake == "alpha doubled":
        original = trainer.session_statistics

        def doubled(*args, **kwargs):
            statistics = original(*args, **kwargs)
            return dataclasses.replace(statistics, advantages=2 * statistics.advantages)

        monkeypatch.setattr(trainer, "session_statistics", doubled)
    else:
        original_plan = trainer.plan_updates

        def without_factor(*args, **kwargs):
            return [dataclasses.replace(update, factor=1.0) for update in original_plan(*args, **kwargs)]

        monkeypatch.setattr(trainer, "plan_updates", without_factor)
    part = step(one, config, rollouts)
    assert difference(part.gradients[0], whole.gradients[0]) > 0.1


@pytest.mark.parametrize("shared", [True, False], ids=["trees", "rows"])
def test_the_gradient_is_that_of_the_definition(actors, tiny_folder, shared):
    rollouts = recording(seed=3)
    result = step(actors, settled(tiny_folder, f"+algorithm.gpg.share_prefixes={shared}"), rollouts)
    assert_same(result.gradients, [by_definition(tiny_folder, rollouts)])
    assert bool(result.metrics["gpg/tokens_shared"]) == shared
    assert result.metrics["gpg/positions_scored"] < result.metrics["gpg/tokens_computed"]


def test_truncated_responses_left_out(one, tiny_folder):
    rollouts = recording(seed=3)
    long = {key for key in rollouts.keys if rollouts.tags[key]["response_len"] == 16}
    assert long
    result = step(one, settled(tiny_folder, "+algorithm.gpg.drop_truncated=True"), rollouts)
    assert_same(result.gradients, [by_definition(tiny_folder, rollouts, left_out=long)])
    assert result.metrics["gpg/B"] == PROMPTS * N


def test_responses_without_a_reward_are_in_no_group(one, tiny_folder):
    """The gradient is that of the rollout without them, counted nowhere: a group of one, and a group of none, too."""
    unscored = [[1, 0, NAN, 1], WRONG, [NAN] * N, [1, NAN, NAN, NAN], *MIXED[4:]]
    rollouts, config = recording(unscored), settled(tiny_folder, "+algorithm.gpg.drop_unscored=True")
    dropped = step(one, config, rollouts)
    without = copy.deepcopy(rollouts)
    without.keys = [key for key in rollouts.keys if not rollouts.rows[key]["rm_scores"].isnan().any()]
    assert_same(dropped.gradients, [by_definition(tiny_folder, without)])
    assert dropped.metrics["gpg/rows_unscored"] == 1 + N + 3
    assert dropped.metrics["gpg/B"] == len(without.keys)
    assert dropped.metrics["gpg/groups_of_one"] == 1
    with pytest.raises(ValueError, match="NaN or infinite"):
        step(one, settled(tiny_folder), rollouts)
    with pytest.raises(NoReward, match="none of the step's 16 responses has a reward"):
        step(one, config, recording([[NAN] * N] * 4))


def test_no_valid_group_no_update(one, tiny_folder):
    result = step(one, settled(tiny_folder), recording([RIGHT, WRONG] * 4))
    assert result.gradients == []
    assert result.scheduled == 0
    assert result.metrics["gpg/update_skipped"] == 1
    assert not any(key.startswith("actor/") for key in result.metrics)


# Rollouts whose log-probs are near the trainer's, as a real rollout's are; rows differ, and a few are far off.
def near_rollouts(actors, config, rewards=ALL_VALID):
    rollouts = recording(rewards, seed=5)
    actors.call("reset", *[(None,)] * actors.ranks)
    actors.recording = rollouts
    batch = rollouts.batch()
    batch.extra_info = {"calculate_entropy": True, "compute_loss": False, "temperature": 1.0}
    actors.compute_log_prob(batch)
    generator = torch.Generator().manual_seed(0)
    for i, row in enumerate(rollouts.rows.values()):
        length = len(row["responses"])
        exact = row["log_probs"][-length - 1 : -1]
        noise = torch.randn(length, generator=generator) * (2.0 if i % 5 == 0 else 0.05)
        row["rollout_log_probs"] = exact + noise
    return rollouts


def test_agreement_of_trainer_and_rollout_is_verls(actors, tiny_folder):
    """All groups valid: then the rows that the update saw are those of veRL's pass."""
    with_pass = settled(tiny_folder, f"{CORRECTION}.bypass_mode=False")
    without = settled(tiny_folder, f"{ACTOR}.calculate_entropy=True")
    rollouts = near_rollouts(actors, without)
    theirs = step(actors, with_pass, rollouts).metrics
    ours = step(actors, without, rollouts).metrics
    names = {k for k in theirs if k.startswith(("training/rollout_", "rollout_corr/"))} | {"actor/entropy"}
    assert len(names) > 15
    assert {name: ours[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, rel=1e-4)
    assert ours["gpg/metrics_row_share"] == 1


@pytest.mark.parametrize(
    "settings",
    [
        ["rollout_is=token"],
        ["rollout_is=sequence", "rollout_is_threshold=3.0"],
        ["rollout_rs=token_k1", "rollout_rs_threshold=0.5_2.0"],
        ["rollout_is=token", "rollout_rs=seq_mean_k3", "rollout_rs_threshold=0.5"],
        ["rollout_rs=seq_max_k2", "rollout_rs_threshold=0.5"],  # of some rows every token: no padding for all that
    ],
    ids=" ".join,
)
def test_rollout_correction_from_the_updates_own_log_probs(one, tiny_folder, settings):
    settings = [f"{CORRECTION}.{setting}" for setting in settings]
    with_pass = settled(tiny_folder, *settings, f"{CORRECTION}.bypass_mode=False")
    without = settled(tiny_folder, *settings)
    assert OmegaConf.select(without, f"{CORRECTION}.bypass_mode") is True
    rollouts = near_rollouts(one, without, MIXED)
    theirs, ours = step(one, with_pass, rollouts), step(one, without, rollouts)
    plain = step(one, settled(tiny_folder), rollouts)
    assert_same(ours.gradients, theirs.gradients)
    assert difference(plain.gradients[0], ours.gradients[0]) > 0.01  # the correction does something
    for name, value in (("gpg/B", 32), ("gpg/M", 16), ("gpg/alpha", 2)):  # what is rejected is still a sample
        assert ours.metrics[name] == theirs.metrics[name] == plain.metrics[name] == value


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_several_outputs_a_session(actors, tiny_folder, mode):
    """Sessions of one to three outputs, each of which goes on from the one before: the final one is scored, all have
    its advantage, B and M count sessions.
    """
    from actors import Recording

    generator = torch.Generator().manual_seed(1)

    def ids(low, high):
        return torch.randint(4, 8, (int(torch.randint(low, high + 1, (), generator=generator)),), generator=generator)

    rows, definition = [], []  # prompt, response, reward, uid, session, output; and the reward of the session
    for g, group in enumerate(MIXED):
        first = ids(6, 6)
        for s, reward in enumerate(group):
            prompt, count = first, 1 + (g + s) % 3
            for output in range(count):
                # Scored, but not the final output; and what a tool says.
                rows.append((prompt, ids(1, 16), reward if output == count - 1 else 0.5, f"uid{g}", s, output))
                prompt = torch.cat([prompt, rows[-1][1], ids(2, 2)])
                definition.append((group, reward))
    rollouts = Recording(*map(list, zip(*rows, strict=True)))
    for updates in (1, 4):
        config = settled(
            tiny_folder, f"{ACTOR}.loss_agg_mode={mode}", f"{ACTOR}.ppo_mini_batch_size={PROMPTS // updates}"
        )
        result = step(actors, config, rollouts)
        m = result.metrics
        assert (m["gpg/B"], m["gpg/M"], m["gpg/updates"]) == (32, 16, updates if updates == 1 else m["gpg/updates"])
        assert m["gpg/updates"] <= updates
    # One update: against the definition, with each session's reward given to all its outputs.
    result = step(actors, settled(tiny_folder, f"{ACTOR}.loss_agg_mode={mode}"), rollouts)
    assert_same(result.gradients, [sessions_by_definition(tiny_folder, rollouts, definition, mode)])
    assert result.metrics["gpg/tokens_shared"] > result.metrics["gpg/tokens_computed"]


def sessions_by_definition(folder: Path, rollouts, definition, mode: str) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float64)
    rows = [rollouts.rows[key] for key in rollouts.keys]
    tokens, valid = sum(len(row["responses"]) for row in rows), sum(len(g) for g in MIXED if len(set(g)) > 1)
    loss = torch.zeros((), dtype=torch.float64)
    for row, (group, reward) in zip(rows, definition, strict=True):
        advantage = PROMPTS * N / valid * (reward - sum(group) / N)
        ids, start = row["input_ids"], len(row["prompts"])
        written = model(ids.unsqueeze(0)).logits[0].log_softmax(-1)[start - 1 : -1].gather(-1, ids[start:, None])
        loss = loss - written.sum() * advantage / (tokens if mode == "token-mean" else len(written) * len(rows))
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]).float()


@pytest.mark.parametrize("updates", [1, 4], ids=["K=1", "K=4"])
@pytest.mark.parametrize("term", [f"{ACTOR}.use_kl_loss=True", "algorithm.use_kl_in_reward=True"])
def test_a_kl_term_keeps_every_row(one, tiny_folder, term, updates):
    """The planned updates over all rows are veRL's own."""
    config = settled(
        tiny_folder, term, "+algorithm.gpg.allow_kl=True", f"{ACTOR}.ppo_mini_batch_size={PROMPTS // updates}"
    )
    rollouts = near_rollouts(one, config, MIXED)
    whole = step(one, config, rollouts, without_shortcut(updates))
    ours = step(one, config, rollouts)
    assert ours.metrics["gpg/rows_dropped"] == 0
    assert len(ours.gradients) == updates
    assert_same(ours.gradients, whole.gradients)


def test_lora(tiny_folder):
    """The gradient of the adapters, the only parameters with one."""
    from actors import Actors

    model = "actor_rollout_ref.model"
    config = settled(tiny_folder, f"{model}.lora_rank=4", f"{model}.lora_alpha=8", f"{model}.target_modules=all-linear")
    with Actors(config) as actors:
        actors.call("record_gradients", (0.1,))
        whole = step(actors, config, recording(), without_shortcut(1))
        part = step(actors, config, recording())
    assert 0 < len(whole.gradients[0]) < len(whole.parameters)
    assert part.metrics["gpg/tokens_shared"]
    assert_same(part.gradients, whole.gradients)
