"""The real thing: veRL's own entry point with vLLM, Ray and FSDP on a CPU, on a model that takes seconds.

Three runs carry all assertions: one trains, validates and saves; one resumes it and loses a process on the way; one has
its rollout on workers of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_python
from drills.harness import DrillRun, Remains
from launch import read

STEPS = 3
DETERMINISTIC = (
    "actor_rollout_ref.rollout.full_determinism=True",
    "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def first(run, tiny_folder) -> Remains:
    """What is left of a whole run, with veRL's own comparison of trainer and rollout switched on (the old-log-prob
    pass), one second after it ended well.
    """
    process = DrillRun(
        run,
        tiny_folder,
        "first",
        f"trainer.total_training_steps={STEPS}",
        f"trainer.test_freq={STEPS}",
        f"trainer.save_freq={STEPS}",
        "algorithm.rollout_correction.bypass_mode=False",
        "+algorithm.gpg.alpha=token",
        *DETERMINISTIC,
    )
    try:
        process.wait_for_step(STEPS - 1)
        process.note_shared_memory()
        process.find("vLLM engine")  # by its name, as the guards and a user find it
        assert process.wait_for_end(timeout=400).code == 0, process.log[-5000:]
        return process.remaining(last=1)
    finally:
        process.close()


@pytest.fixture(scope="module")
def trained(run, first) -> Path:
    return run


def test_a_run_that_ends_well_leaves_nothing(first):
    assert first.gone_after is not None, first.left
    assert first.shared_memory == first.temporary == []


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
        assert not any(key.startswith("actor/gpg/") for key in m)
        assert m["gpg/tokens_shared"] > 0


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
    """The same run resumed, with GPG's defaults. Once two more steps are done, the same command is given again beside
    it, and then its agent-loop worker is killed.
    """
    overrides = ("trainer.total_training_steps=10000", "trainer.save_freq=10000", *DETERMINISTIC)
    validation = f"trainer.validation_data_dir={trained}/validation-second"
    run = DrillRun(trained, tiny_folder, "second", *overrides, validation)
    try:
        run.wait_for_step(STEPS + 2)
        beside = run.again("beside")
        refused = beside.wait_for_end()
        beside.close()
        run.note_shared_memory()
        run.failed()
        run.find("agent-loop worker").kill()
        end = run.wait_for_end()
        remains = run.remaining()
    finally:
        run.close()
    return {"refused": refused, "refusal": beside.lines(), "end": end, "remains": remains, "run": run}


def test_resume_goes_on_at_the_next_step(resumed):
    steps = resumed["run"].steps()
    assert min(steps.keys() - {STEPS}) == STEPS + 1  # its metrics of step 3 are those of a validation
    assert steps[STEPS + 1]["training/global_step"] == STEPS + 1


def test_a_resumed_run_samples_what_the_first_one_did(resumed):
    """Both validate after step 3, with sampling on: the same weights and the same seeds give the same text."""
    first, second = (
        sampled(resumed["run"].folder / f"{name}/{STEPS}.jsonl") for name in ("validation", "validation-second")
    )
    assert first == second
    assert len({text for _, text in first}) > 4


def sampled(file: Path) -> list[tuple[str, str]]:
    return sorted((row["input"], row["output"]) for row in map(json.loads, file.read_text().splitlines()))


def test_gpg_runs_no_old_log_prob_pass(resumed):
    """What veRL measures in that pass comes from the update's own forward."""
    first = read(resumed["run"].folder / "first.jsonl")
    second = resumed["run"].steps()
    assert first[2]["timing_s/old_log_prob"] > 0.01 > second[STEPS + 1]["timing_s/old_log_prob"]
    measured = {k for k in first[2] if k.startswith(("training/rollout_", "rollout_corr/"))}
    for metrics in second.values():
        if metrics.get("gpg/update_skipped", True):
            continue
        assert measured <= metrics.keys()
        assert metrics["training/rollout_probs_diff_max"] < 1e-6
        assert metrics["gpg/metrics_row_share"] == pytest.approx(metrics["gpg/valid_share"])


def test_a_second_run_in_the_folder_is_refused(resumed):
    assert resumed["refused"].code == 1
    *_, begin, folder = (line for line in resumed["refusal"] if line.startswith(("gpg_verl: ", "  - trainer.")))
    assert begin == "gpg_verl: this run cannot start."
    assert f"another run saves there (process {resumed['run'].process.pid} on " in folder
    assert not any("checks passed" in line for line in resumed["refusal"])  # veRL's word, which the folder is not in


def test_a_dead_worker_ends_the_run_with_its_name_and_the_way_out(resumed):
    assert resumed["end"].code == 1
    assert resumed["end"].seconds < 60
    *_, cause, way_out = resumed["run"].lines()
    assert cause.startswith("gpg_verl: the run has ended: the agent-loop worker 0 died (process ")
    assert way_out.startswith(f"gpg_verl: step {STEPS} is saved in ")
    assert way_out.endswith(f"the same command goes on with step {STEPS + 1}.")


def test_a_dead_run_leaves_its_logs(resumed):
    remains = resumed["remains"]
    assert remains.gone_after is not None, remains.left
    assert remains.shared_memory == []
    (session,) = (name for name in remains.temporary if name.startswith("ray/session_2"))
    assert set(remains.temporary) == {session, "ray/session_latest"}
    assert f"/{session}/logs\n" in resumed["run"].log


def test_rollout_on_workers_of_its_own(tmp_path, tiny_folder):
    """`separate_async`, where every step waits for responses of the current weights: those that were sent agree."""
    run = DrillRun(
        tmp_path,
        tiny_folder,
        "separate",
        "trainer.v1.trainer_mode=separate_async",
        "trainer.v1.separate_async.parameter_sync_step=1",
        "trainer.v1.separate_async.num_warmup_batches=0",
        "actor_rollout_ref.hybrid_engine=False",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=files",
        "+algorithm.gpg.beta_th=0.6",
        f"trainer.total_training_steps={STEPS}",
        "trainer.test_freq=-1",
    )
    try:
        assert run.wait_for_end(timeout=400).code == 0, run.log[-5000:]
    finally:
        run.close()
    steps = read(tmp_path / "separate.jsonl")
    assert set(range(1, STEPS + 1)) <= set(steps)
    for step in range(1, STEPS + 1):
        m = steps[step]
        assert m["gpg/valid_share"] >= 0.6
        assert m["gpg/tokens_shared"] > 0
        assert m["actor/grad_norm"] > 0
        assert m["training/off_policy/trajectory_staleness/max"] == 0
        assert m["training/rollout_probs_diff_max"] < 1e-6
