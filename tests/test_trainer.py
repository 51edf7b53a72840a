"""What of GPG's step needs no engine. Gradients: test_exactness.py; real runs: test_run.py, test_refill_run.py."""

from __future__ import annotations

import math
from types import SimpleNamespace

import datasets
import pandas as pd
import pytest
import torch

from gpg_verl.guards.rewards import NoReward
from gpg_verl.settings import GPGSettings
from gpg_verl.training.trainer import GPGStep, GPGTrainerSync


def run_through(steps: list[dict], max_skipped_steps: int) -> None:
    """The look at the end of each step, with what its metrics say."""
    run = SimpleNamespace(steps_skipped=0, settings=GPGSettings(max_skipped_steps=max_skipped_steps))
    for step in steps:
        counts = {"updates": 0, "update_skipped": 0, "groups": 2, "all_wrong_groups": 1, "all_right_groups": 1}
        GPGStep._end_if_nothing_is_learned(run, {f"gpg/{key}": value for key, value in {**counts, **step}.items()})


UPDATED, SKIPPED, WARMING_UP = {"updates": 1}, {"update_skipped": 1}, {}


@pytest.mark.parametrize("before", [[], [SKIPPED, SKIPPED, UPDATED]])
def test_a_run_in_which_nothing_is_ever_mixed_ends(before):
    run_through([*before, SKIPPED, SKIPPED], max_skipped_steps=2)
    with pytest.raises(RuntimeError, match=r"last 3 steps.*1 were all wrong and 1 all right.*max_skipped_steps"):
        run_through([*before, SKIPPED, SKIPPED, SKIPPED], max_skipped_steps=2)


@pytest.mark.parametrize(
    "step",
    [
        {**UPDATED, **SKIPPED},  # separate_async: one of a step's local updates was made
        {},  # trainer.critic_warmup: veRL makes no update
    ],
)
def test_a_step_that_lacks_no_mixed_group_is_not_a_skipped_one(step):
    run_through([step] * 5, max_skipped_steps=1)


def validated(rewards: list[float], drop_unscored: bool) -> dict[str, float]:
    """veRL's metrics of a validation of two prompts, with two responses each."""
    run = object.__new__(GPGTrainerSync)
    run.drop_unscored = drop_unscored
    accuracies = [None if math.isnan(reward) else reward for reward in rewards]
    expected = {("sums", "a"): 2, ("sums", "b"): 2}
    infos = {"reward": rewards, "acc": accuracies}
    return run._val_metrics_update(["sums"] * 4, ["a", "a", "b", "b"], infos, [1] * 4, expected_acc_counts=expected)


@pytest.mark.parametrize("drop_unscored", [False, True])
def test_a_validation_in_which_all_is_scored_is_verls(drop_unscored):
    metrics = validated([1.0, 0.0, 1.0, 1.0], drop_unscored)
    assert metrics["val-core/sums/acc/mean@2"] == metrics["val-aux/sums/reward/mean@2"] == 0.75


def test_a_response_without_a_reward_is_to_the_validation_as_one_that_failed():
    metrics = validated([1.0, 0.0, math.nan, 1.0], True)
    assert metrics["val-core/sums/acc/mean@2"] == 0.5
    assert metrics["val-aux/sums/acc_success_only/mean@2"] == 0.5
    assert metrics["val-aux/sums/acc_success_only/mean@1"] == 1.0
    assert not any(math.isnan(value) for value in metrics.values())
    with pytest.raises(NoReward, match="1 of 4 responses of the validation have no reward"):
        validated([1.0, 0.0, math.nan, 1.0], False)


class Data:
    """A data set class of the user's: its rows stand in `dataframe`, of whatever kind."""

    def __init__(self, dataframe=None):
        if dataframe is not None:
            self.dataframe = dataframe


ROWS = {"data_source": ["a", "b", "a"], "images": [[], [], []]}


class Polars(dict):
    """As polars: columns by name, and a list of the names."""

    columns = property(list)


@pytest.mark.parametrize(
    ("rows", "several", "looked_for_images"),
    [
        (lambda: datasets.Dataset.from_dict(ROWS), True, True),
        (lambda: pd.DataFrame(ROWS), True, True),
        (lambda: Polars(ROWS), True, True),
        (lambda: pd.DataFrame({"data_source": ["a", "a"], "prompt": [1, 2]}), False, False),
        (lambda: pd.DataFrame({"prompt": [1]}), False, False),
        (lambda: [{"data_source": "a"}], False, True),  # no table that is known: batches are looked at instead
        (lambda: None, False, True),
    ],
    ids=["datasets", "pandas", "polars", "one source", "no source", "a list", "none"],
)
def test_a_data_set_class_may_keep_its_rows_in_any_table(rows, several, looked_for_images):
    class Verls:
        def _init_dataloader(self):
            self.train_dataset = Data(rows())

    class Step(GPGStep, Verls):
        def __init__(self):
            self.settings = GPGSettings()
            self.config = SimpleNamespace(data={})
            self.rollout_check = SimpleNamespace(kinds={"text", "images"})

    step = Step()
    step._init_dataloader()
    assert step.several_sources == several
    assert ("images" in step.rollout_check.kinds) == looked_for_images


def test_cudnn_attention_is_off_before_a_worker_computes(monkeypatch):
    """Its backward gives NaN with a mask at some lengths (`verl_fixes.attention_without_cudnn`)."""
    from verl.workers.engine_workers import TrainingWorker

    from gpg_verl.training.actor import GPGActor

    seen = []
    monkeypatch.setattr(TrainingWorker, "__init__", lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
    torch.backends.cuda.enable_cudnn_sdp(True)
    GPGActor.actor_worker_cls(None)
    assert seen == [False]
