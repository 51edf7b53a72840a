"""How a step waits: for a share of the time already waited in this wait, and for nobody who is dead."""

from __future__ import annotations

import os
import signal
import time
import types

import pytest
import ray

from gpg_verl.guards import liveness
from gpg_verl.guards.guarded_run import GuardedRun
from gpg_verl.guards.liveness import Died, Heartbeat, poll_seconds, watch


class Buffer:
    """What `watch` needs of veRL's replay buffer: it records how long it would sleep."""

    def __init__(self):
        self.poll_interval = None
        self.slept = []

    def _wait_for_next_poll(self, partition_id, last_debug_time):
        self.slept.append(self.poll_interval)
        return last_debug_time + 1


@pytest.mark.parametrize(("waited", "seconds"), [(0, 0.05), (1, 0.05), (10, 0.5), (40, 2.0), (1000, 2.0)])
def test_polls_grow_with_the_wait(waited, seconds):
    assert poll_seconds(waited) == pytest.approx(seconds)


def test_a_new_wait_starts_anew_however_soon_it_follows():
    buffer = Buffer()
    watch(buffer, lambda: None)
    long_ago = time.time() - 30
    assert buffer._wait_for_next_poll("train", long_ago) == long_ago + 1  # veRL's own, so that its log is kept
    buffer._wait_for_next_poll("train", time.time())
    assert buffer.slept == [pytest.approx(1.5, abs=0.1), 0.05]


def test_the_living_are_asked_for_every_few_seconds(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(liveness.time, "time", lambda: clock[0])
    asked, buffer = [], Buffer()
    watch(buffer, lambda: asked.append(clock[0]))
    for _ in range(12):
        buffer._wait_for_next_poll("train", 1000.0)
        clock[0] += 1
    assert asked == [1000.0, 1006.0]


class Actor:
    """What `Heartbeat` needs of a handle; its questions are answered by number."""

    def __init__(self):
        self.asked = 0
        self.__ray_call__ = self

    def remote(self, question):
        self.asked += 1
        return self.asked


def test_a_lost_connection_is_no_death(monkeypatch):
    """Ray says which of the two it is, and cannot be made to lose a connection in a test."""
    actor, answers = Actor(), {1: ray.exceptions.ActorUnavailableError("connection lost", None)}
    monkeypatch.setattr(ray, "wait", lambda refs, num_returns, timeout: (refs, []))

    def get(ref):
        if ref in answers:
            raise answers[ref]

    monkeypatch.setattr(ray, "get", get)
    beat = Heartbeat(lambda: [("actor worker 3", actor)])
    beat()
    beat()
    assert actor.asked == 2
    answers[3] = ray.exceptions.ActorDiedError()
    with pytest.raises(Died, match=r"^the actor worker 3 died\nRay says: "):  # where, Ray does not know
        beat()


@pytest.fixture
def local_ray():
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_the_dead_are_named_and_the_busy_are_not(local_ray, monkeypatch):
    class Server:
        def __init__(self, errored=False, missing=None):
            self.engine = types.SimpleNamespace(errored=errored)
            if missing:
                raise FileNotFoundError(f"{missing}:\n  no such file")

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
    failed = server.remote(missing="agents.yaml")  # its own exception, not that somebody unknown died
    words = r"^the agent 2 died as it started \(process \d+ on [\d.]+\): FileNotFoundError: agents.yaml: no such file$"
    with pytest.raises(Died, match=words):
        Heartbeat(lambda: [("agent 2", failed)])(seconds=30)

    monkeypatch.setattr(liveness, "ALIVE_EVERY_SECONDS", 0.2)
    assert Heartbeat(lambda: [("worker 0", busy)]).during(lambda: time.sleep(1) or "done") == "done"
    with pytest.raises(ZeroDivisionError):
        Heartbeat(lambda: [("worker 0", busy)]).during(lambda: 1 / 0)
    with pytest.raises(Died, match="the worker 1 died"):
        Heartbeat(lambda: [("worker 1", idle)]).during(lambda: time.sleep(60))


@pytest.mark.parametrize(("resumed", "val_only", "said"), [(3, False, True), (3, True, False), (2, False, False)])
def test_a_finished_run_that_is_started_again_says_so(resumed, val_only, said, capsys):
    class Trainer:
        def fit(self, agent_loop_manager):  # as veRL's
            if val_only:
                return
            self.global_steps += 1
            while self.global_steps <= self.total_training_steps:
                self.global_steps += 1

    class Run(GuardedRun, Trainer):
        def __init__(self):
            trainer = types.SimpleNamespace(total_training_steps=3, total_epochs=1)
            self.config = types.SimpleNamespace(trainer=trainer)
            self.global_steps, self.total_training_steps = resumed, 3

    Run().fit(None)
    line = "gpg_verl: nothing was trained: step 3, from which this run went on, is its last. More steps: raise trainer"
    assert capsys.readouterr().out.startswith(line) == said
