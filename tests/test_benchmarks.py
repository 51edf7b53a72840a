"""Benchmarks that read GPG's own code part by part still run: in small, as test_readme.py asks them for --help only."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import run_python

BENCHMARKS = Path(__file__).parents[1] / "examples/benchmark"


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("driver.py", ["--rows", "64", "--tokens", "16", "--repeat", "1"], "selection, balancing, bookkeeping"),
        ("scale.py", ["--rows", "64", "--ranks", "2"], "together"),
    ],
)
def test_it_runs_in_small(script, arguments, says, tmp_path):
    done = run_python(str(BENCHMARKS / script), *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert says in done.stdout


def test_a_run_of_ordering_begins_with_the_first_weights_and_its_own_loss(tmp_path):
    """Several runs share the actor's process: nothing of one may be left for the next."""
    spec = importlib.util.spec_from_file_location("ordering_runs", BENCHMARKS / "ordering_runs.py")
    runs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runs)
    common = ["+preset=cpu", "data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=8"]
    common += ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8", "actor_rollout_ref.rollout.n=4"]
    configs = {}
    for method, own in {
        "gpg": ["+algorithm.gpg.alpha=none"],
        "grpo": ["actor_rollout_ref.actor.optim.lr=3e-5"],
    }.items():
        (tmp_path / "arguments.txt").write_text("\n".join([*common, f"algorithm.adv_estimator={method}", *own]))
        configs[method] = runs.read(tmp_path)
    assert [c.trainer.v1.trainer_mode for c in configs.values()] == ["gpg_sync", "sync"]
    assert runs.read(tmp_path, more=("algorithm.adv_estimator=gpg",)).trainer.v1.trainer_mode == "gpg_sync"

    module = torch.nn.Linear(2, 2)
    first = [parameter.detach().clone() for parameter in module.parameters()]
    engine = SimpleNamespace(module=module, _build_lr_scheduler=lambda optimizer: None)
    engine._build_optimizer = lambda module: torch.optim.AdamW(module.parameters(), engine.optimizer_config.lr)
    training = SimpleNamespace(engine=engine, loss_fn=partial(print, config=SimpleNamespace(model_config=None)))
    training.set_loss_fn = partial(setattr, training, "loss_fn")
    worker = SimpleNamespace(worker_dict={"actor_rollout": SimpleNamespace(actor=training)})
    for method, loss, rate in (("gpg", "gpg", 1e-6), ("grpo", "vanilla", 3e-5), ("gpg", "gpg", 1e-6)):
        runs.begin_again(worker, configs[method].actor_rollout_ref.actor)
        assert training.loss_fn.keywords["config"].policy_loss.loss_mode == loss
        assert not engine.optimizer.state
        assert engine.optimizer.param_groups[0]["lr"] == rate
        for parameter, at_first in zip(module.parameters(), first, strict=True):
            assert torch.equal(parameter, at_first)
        module(torch.ones(2)).sum().backward()
        engine.optimizer.step()
