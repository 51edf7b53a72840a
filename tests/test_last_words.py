"""How a GPG run ends: last words with the way out, one run in a folder, and the dead named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types

import pytest
from omegaconf import OmegaConf

from gpg_verl.guards import liveness, run_folder
from gpg_verl.guards.last_words import report_end
from gpg_verl.guards.liveness import Died, Heartbeat
from gpg_verl.guards.preemption import Preempted
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


def failed_in_ray(cause: Exception):
    """As it reaches the driver from an actor worker, through the task runner."""
    from ray.exceptions import RayTaskError

    inner = RayTaskError("update_actor", "  File engine.py, line 1, in forward", cause).as_instanceof_cause()
    return RayTaskError("run", f"  File trainer.py, line 1, in fit\n{inner}", inner).as_instanceof_cause()


@pytest.mark.parametrize(
    ("ends_with", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C (SIGINT)"),
        (ValueError("no such\n  model"), 1, "ValueError: no such model"),
        (failed_in_ray(MemoryError("7 GB more")), 1, "MemoryError: 7 GB more"),
        (failed_in_ray(Died("the worker 0 died (process 7)\nRay says: perhaps")), 1, "the worker 0 died (process 7)"),
        (failed_in_ray(Preempted("asked to leave, after step 5")), 75, "asked to leave, after step 5"),
    ],
)
def test_the_last_words_are_what_ended_it_and_the_way_out(monkeypatch, capfd, tmp_path, ends_with, code, said):
    (tmp_path / run_folder.TRACKER).write_text("10")
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


@pytest.mark.parametrize(
    ("saved", "trainer", "said"),
    [
        (None, {}, "no step is saved (trainer.save_freq=5), so the same command starts from the beginning."),
        ("10", {}, "the same command goes on with step 11."),
        ("10", {"resume_mode": "disable"}, "the same command with trainer.resume_mode=auto goes on with step 11."),
        ("10", {"save_freq": -1}, "no step is saved (trainer.save_freq=-1)"),
        ("", {}, "no step is saved"),  # cut off while it was written
    ],
)
def test_the_way_out(tmp_path, saved, trainer, said):
    if saved is not None:
        (tmp_path / run_folder.TRACKER).write_text(saved)
    assert said in run_folder.how_to_go_on(config(tmp_path, **trainer))


HOLD = """
import sys, time
from omegaconf import OmegaConf
from gpg_verl.guards import last_words, run_folder, liveness
print(run_folder.claim(OmegaConf.create({"trainer": {"default_local_dir": sys.argv[1], "save_freq": 5}})), flush=True)
time.sleep(60)
"""


def test_a_folder_has_one_run_until_its_process_is_gone(tmp_path):
    folder = tmp_path / "checkpoints"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "[]\n"
        (problem,) = run_folder.claim(config(folder))
        assert f"trainer.default_local_dir={folder}: another run saves there (process {first.pid} on " in problem
        assert "a folder of its own" in problem
        assert run_folder.claim(config(folder, save_freq=-1)) == []
        assert run_folder.claim(config(folder, val_only=True)) == []
        first.kill()
    assert run_folder.claim(config(folder)) == run_folder.claim(config(folder)) == []
    assert json.loads((folder / run_folder.LOCK).read_text())["pid"] == os.getpid()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    (problem,) = run_folder.claim(config(tmp_path / "file/checkpoints"))
    assert "checkpoints cannot be written there" in problem
    assert "trainer.save_freq=-1" in problem


@pytest.fixture
def local_ray():
    import ray

    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_the_dead_are_named_and_the_busy_are_not(local_ray, monkeypatch):
    class Server:
        def __init__(self, errored=False):
            self.engine = types.SimpleNamespace(errored=errored)

        def sleep(self):
            time.sleep(60)

        def pid(self):
            return os.getpid()

    server = local_ray.remote(num_cpus=0)(Server)
    busy, idle, broken = server.remote(), server.remote(), server.remote(errored=True)
    pid = local_ray.get(idle.pid.remote())
    local_ray.get(busy.pid.remote())
    busy.sleep.remote()

    Heartbeat(lambda: [("worker 0", busy), ("worker 1", idle)])(seconds=2)
    with pytest.raises(Died, match="the engine of the rollout server 1 died"):
        Heartbeat(lambda: [("worker 0", busy), ("rollout server 1", broken)])(seconds=10)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(Died, match=rf"the worker 1 died \(process {pid} on .*\nRay says: its worker process has died"):
        Heartbeat(lambda: [("worker 0", busy), ("worker 1", idle)])(seconds=10)

    monkeypatch.setattr(liveness, "ALIVE_EVERY_SECONDS", 0.2)
    assert Heartbeat(lambda: [("worker 0", busy)]).during(lambda: time.sleep(1) or "done") == "done"
    with pytest.raises(ZeroDivisionError):
        Heartbeat(lambda: [("worker 0", busy)]).during(lambda: 1 / 0)
    with pytest.raises(Died, match="the worker 1 died"):
        Heartbeat(lambda: [("worker 1", idle)]).during(lambda: time.sleep(60))


TERMINATED = """
import sys, types
import ray
from omegaconf import OmegaConf
from gpg_verl.guards.last_words import report_end
from gpg_verl.guards.preemption import Preempted
from gpg_verl.settings import is_gpg

def run_ppo(config, task_runner_class):
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    runner = ray.remote(type("Runner", (), {"run": lambda self: __import__("time").sleep(300)}))
    task_runner_class._runner = runner
    running = task_runner_class.remote().run.remote()
    print("waiting", flush=True)
    ray.get(running)

driver = types.ModuleType("verl.trainer.main_ppo")
driver.run_ppo = run_ppo
sys.modules[driver.__name__] = driver
report_end(is_gpg)
trainer = {"default_local_dir": sys.argv[1], "save_freq": 5, "resume_mode": "auto"}
driver.run_ppo(OmegaConf.create({"algorithm": {"adv_estimator": "gpg"}, "trainer": trainer}), None)
"""


def test_sigterm_gets_last_words(tmp_path):
    """Ray's native handler of SIGTERM would abort the process."""
    program = [sys.executable, "-c", TERMINATED, str(tmp_path)]
    environment = os.environ | {"RAY_ADDRESS": "local"}
    with subprocess.Popen(
        program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "waiting\n"
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "gpg_verl: the run has ended: stopped by SIGTERM" in said
