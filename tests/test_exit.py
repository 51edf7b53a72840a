"""How a run ends: last words with the way out, a preemption after the step at hand, and nothing that stays."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import psutil
import pytest
from omegaconf import OmegaConf
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from gpg_verl.guards import run_folder
from gpg_verl.guards.checkpoints import TRACKER
from gpg_verl.guards.exit import SLACK_SECONDS, Leave, Preempted, grace_seconds, report_end
from gpg_verl.guards.guarded_run import GuardedRun
from gpg_verl.guards.liveness import Died
from gpg_verl.settings import is_gpg


def config(folder, estimator="gpg", **trainer):
    settings = {"default_local_dir": str(folder), "save_freq": 5, "resume_mode": "auto", **trainer}
    return OmegaConf.create({"algorithm": {"adv_estimator": estimator}, "trainer": settings})


def run_of(monkeypatch, ends_with: BaseException | None):
    """veRL's driver with a `run_ppo` that ends in this way, wrapped as before a run."""

    def run_ppo(config, task_runner_class):
        if ends_with is not None:
            raise ends_with
        return "done"

    driver = types.ModuleType("verl.trainer.main_ppo")
    driver.run_ppo = run_ppo
    monkeypatch.setitem(sys.modules, driver.__name__, driver)
    report_end(is_gpg)
    report_end(is_gpg)  # Hydra's multirun comes by several times
    return driver.run_ppo


TRACE = '  File "worker.py", line 1, in step\n    raise error\n'


def failed_in_ray(cause: Exception):
    """As it reaches the driver from an actor worker, through the task runner."""
    inner = RayTaskError("update_actor", TRACE, cause).as_instanceof_cause()
    return RayTaskError("run", f"{TRACE}{inner}", inner).as_instanceof_cause()


def failed_to_start(actor: str, cause: Exception):
    trace = f"{TRACE}{type(cause).__name__}: {cause}"
    return ActorDiedError(RayTaskError("__init__", trace, cause, f"ray::{actor}.__init__", pid=7, ip="10.0.0.1"))


def killed(**where):
    context = ActorDiedErrorContext(actor_id=bytes(16), error_message="The actor is dead because of me.", **where)
    error = ActorDiedError(context)
    error.args = ()  # as Ray makes it
    return error


NO_FILE, NO_FILE_SAID = FileNotFoundError("a.yaml:\n no such file"), "FileNotFoundError: a.yaml: no such file"


@pytest.mark.parametrize(
    ("ends_with", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C (SIGINT)"),
        (ValueError("no such\n  model"), 1, "ValueError: no such model"),
        (failed_in_ray(MemoryError("7 GB more")), 1, "MemoryError: 7 GB more"),
        (failed_in_ray(Died("the worker 0 died (process 7)\nRay says: perhaps")), 1, "the worker 0 died (process 7)"),
        (failed_in_ray(Preempted("asked to leave, after step 5")), 75, "asked to leave, after step 5"),
        # The exception of a worker that failed to start, also where another one failed of it.
        (failed_in_ray(failed_to_start("Agent", NO_FILE)), 1, NO_FILE_SAID),
        (failed_in_ray(failed_to_start("Manager", failed_to_start("Agent", NO_FILE))), 1, NO_FILE_SAID),
        (failed_in_ray(killed(class_name="A", pid=7, node_ip_address="::1")), 1, "the A died (process 7 on ::1)"),
        (failed_in_ray(killed(class_name="Agent")), 1, "the Agent died"),  # whose node is gone
        (failed_in_ray(RayError(f"It isn't serializable:\n{TRACE}MyError: no\nmore\n")), 1, "MyError: no more"),
        (ValueError("x" * 1000), 1, f"ValueError: {'x' * 588}"),
    ],
)  # fmt: skip
def test_the_last_words_are_what_ended_it_and_the_way_out(monkeypatch, capfd, tmp_path, ends_with, code, said):
    (tmp_path / TRACKER).write_text("10")
    with pytest.raises(SystemExit) as end:
        run_of(monkeypatch, ends_with)(config(tmp_path), None)
    assert end.value.code == code
    *before, first, last = capfd.readouterr().err.strip().splitlines()
    assert first == f"gpg_verl: the run has ended: {said}"
    assert last == f"gpg_verl: step 10 is saved in {tmp_path}/global_step_10; the same command goes on with step 11."
    assert any("File " in line for line in before) == (code == 1)  # where it failed, for an error only


@pytest.mark.parametrize(
    ("estimator", "ends_with"), [("grpo", ValueError("theirs")), ("grpo", KeyboardInterrupt()), ("gpg", SystemExit(3))]
)
def test_other_ends_are_left_alone(monkeypatch, capfd, tmp_path, estimator, ends_with):
    with pytest.raises(type(ends_with)) as end:
        run_of(monkeypatch, ends_with)(config(tmp_path, estimator), None)
    assert end.value is ends_with
    assert "gpg_verl" not in capfd.readouterr().err
    assert run_of(monkeypatch, None)(config(tmp_path, estimator), None) == "done"


@pytest.mark.parametrize(("strategy", "saved"), [("fsdp2", "10"), ("megatron", "10"), ("fsdp", None)])
def test_the_last_line_of_a_run_that_ends_well_says_how_to_export(monkeypatch, capfd, tmp_path, strategy, saved):
    if saved is not None:
        (tmp_path / TRACKER).write_text(saved)
    settings = OmegaConf.merge(config(tmp_path), {"actor_rollout_ref": {"actor": {"strategy": strategy}}})
    assert run_of(monkeypatch, None)(settings, None) == "done"
    line = f"gpg_verl: step 10 is saved; as a model: python -m gpg_verl export {tmp_path}/global_step_10 FOLDER\n"
    assert capfd.readouterr().err.endswith(line) == (strategy == "fsdp2")


@pytest.mark.parametrize(
    ("saved", "trainer", "said"),
    [
        (None, {}, "no step is saved (trainer.save_freq=5), so the same command starts from the beginning."),
        ("10", {"resume_mode": "disable"}, "the same command with trainer.resume_mode=auto goes on with step 11."),
        ("10", {"save_freq": -1}, "no step is saved (trainer.save_freq=-1)"),
        ("", {}, "no step is saved"),  # cut off while it was written
    ],
)
def test_the_way_out(tmp_path, saved, trainer, said):
    if saved is not None:
        (tmp_path / TRACKER).write_text(saved)
    assert said in run_folder.how_to_go_on(config(tmp_path, **trainer))


# ---- a real Ray, whose actor makes what veRL's and vLLM's processes make, and then does not see that Ray is gone

PROGRAM = """
import json, os, signal, subprocess, sys, time, types
import ray
from omegaconf import OmegaConf
from gpg_verl.guards import exit
from gpg_verl.settings import is_gpg

WAITS = [sys.executable, "-c", "from multiprocessing import *\\nimport time\\ntime.sleep(600)"]

class Stuck:
    def make(self):
        import mmap
        from multiprocessing import get_context
        self.engine = subprocess.Popen(WAITS)
        self.semaphore = get_context("spawn").Semaphore()
        with open(f"/dev/shm/verl_weights_{os.getpid()}", "w+b") as bucket:
            bucket.truncate(4096)
            self.bucket = mmap.mmap(bucket.fileno(), 4096)
        semaphore = f"/dev/shm/sem.{self.semaphore._semlock.name.strip('/')}"
        return [os.getpid(), self.engine.pid], [bucket.name, semaphore]

    def wait(self):
        time.sleep(300)

def run_ppo(config, task_runner_class):
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    stuck = ray.remote(num_cpus=0)(Stuck).remote()
    task_runner_class._runner = stuck
    made = ray.get(stuck.make.remote())
    waiting = task_runner_class.wait.remote() if sys.argv[1] == "waits" else None
    print(json.dumps(made), flush=True)
    if waiting is not None:
        ray.get(waiting)
    for process in made[0]:
        os.kill(process, signal.SIGSTOP)
    if sys.argv[1] == "fails":
        sys.exit(3)

exit.LEAVE_SECONDS, exit.cannot_place = 2, lambda config: None
driver = types.ModuleType("verl.trainer.main_ppo")
driver.run_ppo = run_ppo
sys.modules[driver.__name__] = driver
exit.report_end(is_gpg)
other = subprocess.Popen(WAITS)
trainer = {"default_local_dir": ".", "save_freq": 5, "resume_mode": "auto"}
config = OmegaConf.create({"algorithm": {"adv_estimator": "gpg"}, "trainer": trainer})
if sys.argv[1] == "fails":
    config.global_profiler = {"tool": "nsys"}  # keeps the logs
try:
    driver.run_ppo(config, types.SimpleNamespace())
finally:
    print(other.poll(), flush=True)
    other.kill()
"""


@pytest.fixture
def base():
    """A temporary folder with a short path: the sockets below it may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="gr-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.parametrize(("end", "code"), [("well", 0), ("fails", 3), ("waits", 143)])
def test_nothing_stays(base, end, code):
    """Nor is anything of others ended. SIGTERM gets last words: Ray's native handler would abort the process."""
    program = [sys.executable, "-c", PROGRAM, end]
    environment = os.environ | {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(base)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(program, env=environment, cwd=base, text=True, **pipes) as process:
        processes, files = json.loads(process.stdout.readline())
        if end == "waits":
            process.terminate()
        after, said = process.communicate(timeout=400)
    assert process.returncode == code, said
    assert after == "None\n"  # the other process lives
    assert not any(map(psutil.pid_exists, processes))
    assert [file for file in files if Path(file).exists()] == []
    sessions = list(base.glob("ray/session_*"))
    assert ("gpg_verl: the run has ended: stopped by SIGTERM\n" in said) == (end == "waits")
    if end != "fails":
        assert sessions == []
        return
    (session,) = (folder for folder in sessions if folder.name != "session_latest")
    assert [path.name for path in session.iterdir()] == ["logs"]
    assert f"gpg_verl: Ray's logs are in {session}/logs\n" in said


def test_the_ray_of_who_calls_goes_on(monkeypatch, tmp_path):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr("gpg_verl.guards.exit.end_ray", pytest.fail)
    assert run_of(monkeypatch, None)(config(tmp_path), None) == "done"


# ---- a preemption


def leave_after(step_seconds, save_seconds, elapsed, until):
    """In the middle of a step, `elapsed` seconds after its begin and asked to be gone in `until` seconds."""
    now, answers = [1000.0], []
    leave = Leave(asked=lambda: answers[-1] if answers else None, clock=lambda: now[-1])
    for seconds in (0, step_seconds):
        now.append(now[-1] + seconds)
        assert not leave.between_steps()
    leave.save_seconds = save_seconds
    now.append(now[-1] + elapsed)
    if until is not None:
        answers.append(now[-1] + until)
    return leave


@pytest.mark.parametrize(
    ("step_seconds", "save_seconds", "elapsed", "until", "goes_on"),
    [
        (60, 10, 20, None, True),  # not asked
        (60, 10, 20, math.inf, True),  # asked without a word on the time
        (60, 10, 20, 40 + 10 + SLACK_SECONDS, True),
        (60, 10, 20, 40 + 10 + SLACK_SECONDS - 1, False),
        (60, 10, 90, 10 + SLACK_SECONDS, True),  # longer than the last one already: any moment now
        (60, 10, 90, 9 + SLACK_SECONDS, False),
    ],
)
def test_a_step_goes_on_while_it_can_end_in_time(step_seconds, save_seconds, elapsed, until, goes_on):
    leave = leave_after(step_seconds, save_seconds, elapsed, until)
    if goes_on:
        leave.while_waiting()
    else:
        with pytest.raises(Preempted, match=f"asked to leave within {until:.0f} s"):
            leave.while_waiting()
    assert leave.between_steps() == (until is not None)


def test_the_validation_before_training_is_no_step():
    leave = Leave(asked=lambda: 0.0)
    leave.while_waiting()
    assert leave.between_steps()


class Trainer:
    """What a guarded run asks of veRL's."""

    def __init__(self, config):
        self.config = config
        self.global_steps = 0
        self.begun, self.saved = [], []

    def on_step_begin(self):
        self.begun.append(self.global_steps)

    def _save_checkpoint(self):
        self.saved.append(self.global_steps)


class Run(GuardedRun, Trainer):
    pass


@pytest.mark.parametrize(
    ("save_freq", "asked_in", "saved"),
    [(5, 3, [3]), (5, 5, [5]), (5, 6, [5, 6]), (1, 2, [1, 2]), (-1, 3, []), (5, 0, [])],
)
def test_the_step_that_is_done_is_saved_once(tmp_path, save_freq, asked_in, saved):
    run = Run(OmegaConf.create({"actor_rollout_ref": {}, "trainer": {
        "default_local_dir": str(tmp_path), "max_actor_ckpt_to_keep": None, "save_freq": save_freq,
    }}))  # fmt: skip
    asked = [math.inf] if asked_in == 0 else []
    run.leave = Leave(asked=lambda: asked[-1] if asked else None)

    def fit():  # as veRL's
        for step in range(1, 20):
            run.global_steps = step
            run.on_step_begin()
            if step == asked_in:
                asked.append(math.inf)
            if save_freq > 0 and step % save_freq == 0:
                run._save_checkpoint()

    with pytest.raises(Preempted, match=f"asked to leave, after step {asked_in}$"):
        fit()
    assert run.begun == list(range(1, asked_in + 1))
    assert run.saved == saved


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", None), ("300", 300.0), ("0.5", 0.5), *((text, "refused") for text in ("5m", "-1", "0", "inf", "nan"))],
)
def test_the_grace(monkeypatch, text, seconds):
    monkeypatch.setenv("GPG_GRACE", text)
    if seconds != "refused":
        assert grace_seconds() == seconds
        return
    with pytest.raises(ValueError, match=f"GPG_GRACE={text}: expected seconds"):
        grace_seconds()
