"""The study of the knobs: its batched mathematics is the project's, run by run, and a small study runs to its end."""

from __future__ import annotations

from pathlib import Path

import knobs_study as study
import knobs_task as task
import numpy as np
import pytest
import torch
from conftest import run_python
from knobs_analysis import area, at_best_rate
from verl.trainer.ppo.core_algos import compute_gpg_outcome_advantage

from gpg_verl.algorithm.advantage import gpg_advantage
from gpg_verl.algorithm.loss import gpg_token_loss

BENCHMARKS = Path(__file__).parents[1] / "examples/benchmark"
RUNS = 3


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return task.new_weights(list(range(RUNS)))


def table(weights) -> torch.Tensor:
    return task.token_log_probs(task.node_log_probs(weights))


def alone(weights, run: int) -> dict[str, torch.Tensor]:
    return {name: value[run : run + 1].detach().clone().requires_grad_() for name, value in weights.items()}


def test_probabilities_are_those_of_a_policy(weights):
    torch.testing.assert_close(table(weights).sum(-1).exp().sum(-1), torch.ones(RUNS, len(task.PROMPTS)))


def test_a_run_sees_no_other(weights):
    for run in range(RUNS):
        torch.testing.assert_close(table(alone(weights, run)), table(weights)[run : run + 1])


def test_a_token_sees_only_what_it_follows(weights):
    """Another embedding of the digit 1: what begins with zeros stays as it was."""
    changed = {name: value.clone() for name, value in weights.items()}
    changed["digit"][:, 1] += 1
    before, after = (task.node_log_probs(w) for w in (weights, changed))
    zeros = [1 not in node for node in task.NODES]
    torch.testing.assert_close(before[:, :, zeros], after[:, :, zeros])
    assert not torch.allclose(before[:, :, [not zero for zero in zeros]], after[:, :, [not zero for zero in zeros]])


def of_the_project(method: study.Method, tokens: torch.Tensor, rows: torch.Tensor, rewards: torch.Tensor):
    """The loss of one run from its rows, with the dense functions that veRL's batches go through."""
    response = rows % len(task.RESPONSES)
    mask = task.MASK[response]
    token_rewards = torch.zeros(len(rows), task.MAX_TOKENS)
    token_rewards[torch.arange(len(rows)), task.LENGTHS[response] - 1] = rewards.flatten()[rows]
    index = np.repeat(np.arange(study.GROUPS), study.RESPONSES).astype(str).astype(object)
    if method.alpha == "verl":
        advantages, _ = compute_gpg_outcome_advantage(token_rewards, mask.float(), index)
    else:
        advantages, _, _ = gpg_advantage(token_rewards, mask, index, f_norm=method.f_norm, alpha=method.alpha)
    loss = gpg_token_loss(tokens.flatten(0, 1)[rows], advantages) * mask
    if method.mean == "token":
        return loss.sum() / mask.sum()
    per_row = loss.sum(-1) / (mask.sum(-1) if method.mean == "sequence" else task.MAX_TOKENS)
    return per_row.mean()


@pytest.mark.parametrize("shaped", ["", "scales", "bonus"])
@pytest.mark.parametrize("name", study.METHODS)
def test_the_batched_gradient_is_each_runs_own(weights, name, shaped):
    method, cell = study.METHODS[name], study.Cell("", 0.3, shaped=shaped)
    leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
    tokens = table(leaves)
    u = study.random_numbers(RUNS, 1, study.MAX_BATCHES)[0]
    batch = study.sample(cell, method, tokens.detach().sum(-1).exp(), u)
    study.losses(method, tokens, batch).sum().backward()
    assert batch.valid.any()
    for run in range(RUNS):
        own = alone(weights, run)
        of_the_project(method, table(own)[0], batch.rows[run], study.shaped_rewards(cell)).backward()
        for n, leaf in own.items():
            torch.testing.assert_close(leaves[n].grad[run], leaf.grad[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_clip"])
def test_the_batched_optimizer_is_torchs(weights, optimizer):
    learner = study.Learner(weights, torch.full((RUNS,), 0.01), optimizer)
    own = [torch.nn.Parameter(learner.flat[run].detach().clone()) for run in range(RUNS)]
    torchs = [torch.optim.AdamW([p], lr=0.01, weight_decay=0.01) for p in own]
    for step in range(3):
        gradient = torch.randn(learner.flat.shape, generator=torch.Generator().manual_seed(step))
        learner.flat.grad = gradient.clone()
        moving = torch.tensor([True, step != 1, True])  # one run has no valid group in a step
        learner.update(moving)
        for run in range(RUNS):
            own[run].grad = gradient[run].clone()
            if optimizer == "adamw_clip":
                torch.nn.utils.clip_grad_norm_([own[run]], study.CLIP)
            if moving[run]:
                torchs[run].step()
    torch.testing.assert_close(learner.flat.detach(), torch.stack([p.detach() for p in own]))


def test_refilled_steps_have_enough_valid_groups():
    rewards = (torch.rand(5, study.MAX_BATCHES * study.GROUPS, study.RESPONSES) < 0.05).float()
    chosen, dispatched = study.refilled(rewards, 0.6)
    mixed = rewards.amax(-1) > rewards.amin(-1)
    assert chosen.shape == (5, study.GROUPS)
    assert (mixed.gather(1, chosen).sum(-1) >= 10).all()
    assert (chosen.amax(-1) < dispatched).all()


def test_the_gradients_expectation_points_where_the_reward_grows():
    """F_norm = 1 and responses of one length or another: the bias is small; GRPO's mean per response has more."""
    start = task.pretrain(task.new_weights([0]), task.start(0.25, 0.7), steps=60)
    found = study.gradients(study.CELLS["held09"], start, 400, 0)
    assert found["gpg"]["cosine"] > 0.97
    assert found["gpg"]["alpha varies"] == 0 < found["gpg_alpha"]["alpha varies"]


def test_the_rate_is_chosen_on_the_other_half():
    values = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    chosen, best = at_best_rate(values)
    assert (chosen.tolist(), best.tolist()) == ([0.0] * 4, [1, 0, 1, 0])


@pytest.mark.parametrize(("end", "mean"), [(4.0, 2.0), (2.0, 1.0), (3.0, 1.5)])
def test_area_ends_between_points(end, mean):
    assert area(np.array([0.0, 2.0, 4.0]), np.array([0.0, 2.0, 4.0]), end) == pytest.approx(mean)


def test_a_small_study(tmp_path):
    command = [str(BENCHMARKS / "knobs.py"), "--cells", "held05", "--optimizers", "adamw_clip", "--out", "out"]
    small = ["--seeds", "2", "--batches", "20"]
    done = run_python(*command, *small, "--steps", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "by step: 7 comparisons" in done.stdout
    pictures = {file.name for file in (tmp_path / "out").glob("*.png")}
    assert pictures == {
        f"knobs-{name}.png" for name in ("step", "responses", "passes", "one-rate", "curves", "gradient")
    }
    other = run_python(*command, *small, "--steps", "3", cwd=tmp_path)
    assert other.returncode == 2
    assert "held05.npz is of seeds=2 steps=2" in other.stdout
