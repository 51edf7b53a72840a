"""How a step waits for its groups: promptly, and never for a process that is gone."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import TypeVar

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from gpg_verl.compat.seams import seam

T = TypeVar("T")

# veRL's replay buffer asks every 2 s whether the rollout is done: most of a short step. Asking costs one metadata
# listing, so the wait is a share of the time already waited: 5 % late at most, and never later than veRL's own 2 s.
FIRST_POLL_SECONDS = 0.05
POLL_SHARE = 0.05
LAST_POLL_SECONDS = 2.0

ALIVE_EVERY_SECONDS = 5.0


def poll_seconds(waited: float) -> float:
    """Seconds until the next look at the rollout, after `waited` seconds of waiting."""
    return min(LAST_POLL_SECONDS, max(FIRST_POLL_SECONDS, POLL_SHARE * waited))


def watch(buffer, check_alive: Callable[[], None]) -> None:
    """Goes before a replay buffer's `_wait_for_next_poll`: sets how long it sleeps, and looks whether all are alive.

    veRL 0.9.1 waits for the status of each prompt, also of a worker or server that is dead.
    """
    verls = seam(type(buffer), "_wait_for_next_poll", ("self", "partition_id", "last_debug_time"))
    last_check = 0.0

    def wait_for_next_poll(partition_id: str, last_debug_time: float) -> float:
        # veRL's buffer takes this time where a wait begins, and again each minute, when it logs what it waits for.
        nonlocal last_check
        now = time.time()
        buffer.poll_interval = poll_seconds(now - last_debug_time)
        if now - last_check > ALIVE_EVERY_SECONDS:
            check_alive()
            last_check = now
        return verls(buffer, partition_id, last_debug_time)

    buffer._wait_for_next_poll = wait_for_next_poll


class Died(RuntimeError):
    """One of a run's processes is gone; the message's first line names it."""


class Heartbeat:
    """Tells when one of a run's Ray actors, `actors` as (name, handle), has died, without waiting for the busy.

    A server is asked for its engine too: it outlives it and fails every request, which a step takes for failed prompts.
    """

    def __init__(self, actors: Callable[[], Iterable[tuple[str, object]]]):
        self.actors = actors
        self.pings: dict[str, object] = {}

    def __call__(self, seconds: float = 0) -> None:
        """Raises Died naming what died; gives the living `seconds` to answer."""

        def engine_dead(actor):  # goes by value, as a local function: a rollout's node may not have this package
            return bool(getattr(getattr(actor, "engine", None), "errored", False))  # vLLM's AsyncLLM has it

        for name, actor in self.actors():
            if name not in self.pings:  # one question at a time: a busy actor answers when it can
                self.pings[name] = actor.__ray_call__.remote(engine_dead)
        answered = ray.wait(list(self.pings.values()), num_returns=len(self.pings), timeout=seconds)[0]
        for name in [name for name, ping in self.pings.items() if ping in answered]:
            try:
                answer = ray.get(self.pings.pop(name))
            except ActorUnavailableError:
                continue  # a connection was lost, maybe for a moment; whether for good, Ray tells a later question
            except RayActorError as error:
                raise Died(death_of(error, name)) from None
            if answer:
                raise Died(f"the engine of the {name} died (a process of vLLM's; its errors stand above)")

    def again(self, seconds: float) -> None:
        """The same by new questions only: what was asked before may have been answered by somebody who died since."""
        self()
        self(seconds)

    def during(self, work: Callable[[], T]) -> T:
        """Does `work`, in a thread of its own, and looks meanwhile whether all are alive.

        In the weight sync the trainer's end waits for the rollout's without a limit (veRL 0.9.1). The thread is then
        left behind; it ends with the run.
        """
        done: Future = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        while not wait([done], timeout=ALIVE_EVERY_SECONDS).done:
            self()
        return done.result()


def death_of(error: RayActorError, name: str | None = None) -> str:
    """Who died, where, and of what: of the exception with which it failed to start, or, in a second line, of what Ray
    thinks. Without a name an actor is called by its class.
    """
    text = " ".join(str(error).split())

    def find(pattern: str) -> str | None:
        return found[1] if (found := re.search(pattern, text)) else None

    name = name or find(r"\bclass_name: (\S+)") or "actor"
    pid, ip = find(r"\bpid[:=] ?(\d+)"), find(r"\bip[:=] ?([^ ,]+)")
    where = f" (process {pid} on {ip})" if pid else ""
    if (cause := root_cause(error)) is not error:
        return f"the {name} died as it started{where}: {own_words(cause)}"
    return f"the {name} died{where}\nRay says: {find('The actor is dead because (.*)') or text}"


def root_cause(error: BaseException) -> BaseException:
    """A worker's own exception, out of all that Ray wraps it in: one RayTaskError for each process that it came
    through, and an ActorDiedError where the worker failed to start.
    """
    while True:
        if isinstance(error, RayTaskError):
            error = error.cause
        elif isinstance(error, RayActorError) and error.args and isinstance(error.args[0], RayTaskError):
            error = error.args[0]
        else:
            return error


def own_words(error: BaseException) -> str:
    """An exception as one line: by its end where it is a whole trace, as Ray's of one that cannot be pickled."""
    text = str(error)
    if isinstance(error, Died | RayActorError):
        return (text if isinstance(error, Died) else death_of(error)).splitlines()[0]
    if '\n  File "' in text and (last := re.split(r"\n[ ^].*", text)[-1].strip()):
        return " ".join(last.split())
    return f"{type(error).__name__}: {' '.join(text.split())}"
