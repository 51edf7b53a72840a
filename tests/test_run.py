"""The real thing: veRL's own entry point with vLLM, Ray and FSDP on a CPU, on a model that takes seconds.

Two runs carry all assertions: one trains, validates and saves; one resumes it and loses a process on the way.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import run_python
from launch import launch, read

STEPS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def trained(run, tiny_folder) -> Path:
    """A whole run, with veRL's own comparison of trainer and rollout switched on (the old-log-prob pass)."""
    process = launch(
        run,
        tiny_folder,
        "first",
        f"trainer.total_training_steps={STEPS}",
        f"trainer.test_freq={STEPS}",
        f"trainer.save_freq={STEPS}",
        "algorithm.rollout_correction.bypass_mode=False",
        "+algorithm.gpg.alpha=token",
    )
    assert process.wait(timeout=400) == 0, (run / "first.log").read_text()[-5000:]
    return run


def test_the_first_lines_say_what_is_in_force(trained):
    log = (trained / "first.log").read_text()
    before_ray = log[: log.index("Started a local Ray instance")]
    assert "adv_estimator=gpg with f_norm=1 alpha=token beta_th=0 allow_kl=False" in before_ray
    assert "trainer.v1.trainer_mode=gpg_sync" in before_ray
    assert "all 1 actor workers answer `gpg` with gpg_verl" in log


def test_neither_critic_nor_reference_is_started(trained):
    log = (trained / "first.log").read_text()
    assert "create worker group dict_keys(['actor_rollout'])" in log
    metrics = read(trained / "first.jsonl")[1]
    assert not any(key.startswith(("critic/vf", "critic/values", "timing_s/ref", "timing_s/values")) for key in metrics)


def test_every_step_is_explained(trained):
    steps = read(trained / "first.jsonl")
    assert sorted(steps) == list(range(STEPS + 1))
    for step in range(1, STEPS + 1):
        m = steps[step]
        assert m["gpg/B"] == 32
        assert m["gpg/groups"] == 4
        assert m["gpg/valid_share"] == pytest.approx(1 - m["gpg/M"] / m["gpg/B"])
        assert m["gpg/alpha"] >= 1
        assert m["gpg/all_right_groups"] + m["gpg/all_wrong_groups"] == pytest.approx(m["gpg/M"] / 8)
        if m["gpg/valid_share"] == 0:
            assert m["gpg/update_skipped"] == 1
            assert "actor/grad_norm" not in m
            continue
        assert m["gpg/update_skipped"] == 0
        assert m["gpg/rows_dropped"] == m["gpg/M"]
        assert m["actor/grad_norm"] > 0
        # GPG's loss, not PPO's, which reports its clipping.
        assert "actor/pg_loss" in m
        assert "actor/pg_clipfrac" not in m


def test_rollout_has_the_trainers_weights_after_every_update(trained):
    """Steps 2 and 3 are sampled with weights that went through the sync; in fp32 both sides agree to rounding."""
    steps = read(trained / "first.jsonl")
    for step in range(1, STEPS + 1):
        assert steps[step]["training/rollout_probs_diff_max"] < 1e-6


def test_validation_and_checkpoint(trained):
    steps = read(trained / "first.jsonl")
    assert {0, STEPS} <= {step for step, m in steps.items() if "val-core/tiny/vowels/acc/mean@1" in m}
    assert len((trained / f"validation/{STEPS}.jsonl").read_text().splitlines()) == 16
    folder = trained / f"checkpoints/global_step_{STEPS}"
    assert (folder / "data.pt").is_file()
    assert list((folder / "actor").glob("model_world_size_1_rank_0.pt"))


def test_report_reads_the_run(trained):
    (trained / "metrics.jsonl").write_text((trained / "first.jsonl").read_text())
    result = run_python("-m", "gpg_verl.report", "show", str(trained), cwd=trained, COLUMNS="160")
    assert result.returncode == 0, result.stdout
    assert (trained / "plot.png").stat().st_size > 10_000
    assert "held-out" in result.stdout


@pytest.fixture(scope="module")
def resumed(trained, tiny_folder):
    """The same run resumed, with GPG's defaults; its agent-loop worker is killed once two more steps are done."""
    process = launch(
        trained, tiny_folder, "second", "trainer.total_training_steps=10000", "trainer.val_before_train=False"
    )
    file = trained / "second.jsonl"
    deadline = time.monotonic() + 300
    while len(read(file)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    victims = [child for child in children if "AgentLoopWorker" in " ".join(safe_cmdline(child))]
    for victim in victims:
        victim.kill()
    killed = time.monotonic()
    try:
        code = process.wait(timeout=120)
    except subprocess.TimeoutExpired:
        code = None
        os.killpg(process.pid, signal.SIGKILL)
    return {"victims": len(victims), "code": code, "seconds": time.monotonic() - killed, "folder": trained}


def safe_cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_resume_goes_on_at_the_next_step(resumed):
    steps = read(resumed["folder"] / "second.jsonl")
    assert min(steps) == STEPS + 1
    assert steps[STEPS + 1]["training/global_step"] == STEPS + 1


def test_gpg_runs_no_old_log_prob_pass(resumed):
    """What veRL measures in that pass comes from the update's own forward."""
    first = read(resumed["folder"] / "first.jsonl")
    second = read(resumed["folder"] / "second.jsonl")
    assert first[2]["timing_s/old_log_prob"] > 0.01 > second[STEPS + 1]["timing_s/old_log_prob"]
    measured = {k for k in first[2] if k.startswith(("training/rollout_", "rollout_corr/"))}
    for metrics in second.values():
        if metrics["gpg/update_skipped"]:
            continue
        assert measured <= metrics.keys()
        assert metrics["training/rollout_probs_diff_max"] < 1e-6
        assert metrics["gpg/metrics_row_share"] == pytest.approx(metrics["gpg/valid_share"])


def test_a_dead_worker_ends_the_run_with_a_message(resumed):
    assert resumed["victims"] == 1
    assert resumed["code"] not in (0, None)
    assert resumed["seconds"] < 60
    log = (resumed["folder"] / "second.log").read_text()
    assert "the agent-loop worker 0 died while the step waited for it" in log or "ActorDiedError" in log
