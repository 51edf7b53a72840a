"""How a step waits: a share of the time already waited, counted from this wait's own start."""

from __future__ import annotations

import time

import pytest
import ray

from gpg_verl.guards import liveness
from gpg_verl.guards.liveness import Heartbeat, Watch, poll_seconds


class Buffer:
    """What `Watch` needs of veRL's replay buffer: it records how long it would sleep."""

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
    watch = Watch(buffer, lambda: None)
    long_ago = time.time() - 30
    assert watch("train", long_ago) == long_ago + 1  # veRL's own return value, and its log, are kept
    watch("train", time.time())
    assert buffer.slept == [pytest.approx(1.5, abs=0.1), 0.05]


def test_the_living_are_asked_for_every_few_seconds(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(liveness.time, "time", lambda: clock[0])
    asked = []
    watch = Watch(Buffer(), lambda: asked.append(clock[0]))
    for _ in range(12):
        watch("train", 1000.0)
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
    with pytest.raises(RuntimeError, match="the actor worker 3 died"):
        beat()
