"""A step's metrics: counts add up over local updates."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from verl.utils.tracking import Tracking

from gpg_verl.algorithm.advantage import group_statistics
from gpg_verl.algorithm.updates import Update
from gpg_verl.report.runs import load_run
from gpg_verl.training.metrics import StepMetrics, keep_metrics


def statistics(rewards: list[list[float]]):
    scores = torch.tensor([r for group in rewards for r in group])
    uids = [g for g, group in enumerate(rewards) for _ in group]
    return group_statistics(scores, uids, torch.full((len(uids),), 5))


MIXED, FLAT, RIGHT = [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]


def updated(metrics: StepMetrics, rows: list[int], of: int, observed: float):
    metrics.updated(
        [Update([rows], 2, 1.0, of, [0])],
        1,
        response_tokens=[5] * of,
        sequence_tokens=[8] * of,
        real=list(range(of)),
        observed=observed,
    )


def test_counts_add_up_over_local_updates():
    metrics = StepMetrics()
    metrics.sampled(statistics([MIXED, FLAT]), ["a", "a", "b", "b"])
    updated(metrics, [0, 1], 4, observed=2)
    metrics.sampled(statistics([RIGHT, FLAT]), ["a", "a", "b", "b"])
    metrics.counts["update_skipped"] += 1
    seen = metrics.end()
    expected = {
        "B": 8,
        "M": 6,
        "groups": 4,
        "all_right_groups": 1,
        "all_wrong_groups": 2,
        "updates": 1,
        "update_skipped": 1,
        "rows_dropped": 2,
        "tokens_dropped": 10,
        "tokens_computed": 16,
        "positions_scored": 16,
        "tokens_shared": 0,
        "alpha": (2 + 1) / 2,
        "valid_share": 2 / 8,
        "valid_share/a": 2 / 4,
        "valid_share/b": 0,
        "metrics_row_share": 0.5,
    }
    assert {key: seen[f"gpg/{key}"] for key in expected} == expected


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("loggers", ["console", ["console", "file"]])
def test_every_run_keeps_its_metrics(tmp_path, monkeypatch, loggers, named):
    """Whatever its loggers: where the user says, or else beside the checkpoints, a file for each start."""
    monkeypatch.delenv("VERL_FILE_LOGGER_ROOT", raising=False)
    for step in (1, 2):
        monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / f"metrics-{step}.jsonl"))  # and back after the test
        if not named:
            monkeypatch.delenv("VERL_FILE_LOGGER_PATH")
        config = OmegaConf.create({"trainer": {"logger": loggers, "default_local_dir": str(tmp_path / "run")}})
        keep_metrics(config)
        assert list(config.trainer.logger) == ["console", "file"]
        tracking = Tracking("project", "experiment", config.trainer.logger)
        tracking.log({"gpg/B": 8.0}, step)
        tracking.finish()
    assert load_run(tmp_path if named else tmp_path / "run").column("gpg/B").tolist() == [8.0, 8.0]
