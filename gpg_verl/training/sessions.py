"""The rollout's sessions, watched where they run: which failed and why, whose prompt was cut, and which do not end.

veRL (0.9.1) trains on what is left of a group when a session raises, cuts a long prompt with a line in a worker's log,
and waits for ever for a session that never ends. Each agent-loop worker has a `SessionWatch`, asked once a step.
"""

from __future__ import annotations

import asyncio
import contextvars
import statistics
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopWorker

from gpg_verl.compat.seams import TrainerMixin, seam
from gpg_verl.guards.guarded_run import SessionsFailed
from gpg_verl.guards.liveness import Died

# A session is named as one that may never end after so many times the median of the finished, and at least so long.
TIMES_MEDIAN = 10
LEAST_SECONDS = 120.0
SECONDS_BEFORE_ANY = 600.0  # where none has finished yet
LOOK_SECONDS = 5.0
LONGEST = 300  # characters of an error or a prompt, in messages

AGENT_LOOP = "the agent loop's own code"


@dataclass(eq=False)
class Session:
    """One that is running. waits_for: as far as is known."""

    uid: str
    number: int
    prompt: str
    validates: bool
    began: float
    waits_for: str = AGENT_LOOP
    named: bool = False


@dataclass
class EndedSessions:
    """Of the training, since the last look or of a step.

    failures: (uid of the prompt, error) of each that failed.
    truncated: uids of prompts that lost their beginning.
    """

    count: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    truncated: set[str] = field(default_factory=set)

    def add(self, other: EndedSessions) -> None:
        self.count += other.count
        self.failures += other.failures
        self.truncated |= other.truncated

    def metrics(self) -> dict[str, int]:
        return {
            "gpg/sessions_failed": len(self.failures),
            "gpg/groups_incomplete": len({uid for uid, _ in self.failures}),
            "gpg/prompts_truncated": len(self.truncated),
        }

    def summary(self, sessions: int) -> str:
        """How many failed of a step of so many sessions, or more where it was refilled; the first error comes last."""
        uids, errors = zip(*self.failures, strict=True)
        return (
            f"{len(errors)} of the step's {max(sessions, self.count)} sessions failed in the rollout, in "
            f"{len(set(uids))} groups; {errors.count(errors[0])} of them by the first error: {errors[0]}"
        )

    def end_if_too_many(self, sessions: int, max_share: float) -> None:
        """Raises SessionsFailed where more than one, and more than `max_share` of them, failed; `sessions` as above."""
        failed = len(self.failures)
        if failed > 1 and failed > max_share * max(sessions, self.count):
            allowed = f"+algorithm.gpg.max_failed_share={max_share:g}"
            raise SessionsFailed(f"more than {allowed} allows (1 allows all): {self.summary(sessions)}")


class SessionWatch:
    """In an agent-loop worker of veRL's: goes around `_run_agent_loop`, and notes what a session waits for. One that
    has run for `max_seconds` is ended, as one that failed; None: never.
    """

    def __init__(self, worker: AgentLoopWorker, max_seconds: float | None):
        self.max_seconds = max_seconds
        self.ended = EndedSessions()
        self.running: dict[int, Session] = {}
        self.finished: deque[float] = deque(maxlen=1000)  # seconds of the last ones
        self.current: contextvars.ContextVar[Session | None] = contextvars.ContextVar("session", default=None)
        seam(AgentLoopWorker, "_run_agent_loop", ("self", "sampling_params", "trajectory"))
        seam(AgentLoopWorker, "_compute_score", ("self", "outputs", "kwargs"))
        cap = seam(AgentLoopBase, "_cap_text_prompt_length", ("self", "prompt_ids"))
        worker._run_agent_loop = self._watched(worker._run_agent_loop)
        worker._compute_score = self._waiting("the reward", worker._compute_score)
        worker.llm_client.generate = self._waiting("generation", worker.llm_client.generate)
        for tool in worker.tools:
            name = "execute" if hasattr(tool, "execute") else "call"  # veRL's two kinds of tools
            setattr(tool, name, self._waiting(f"the tool {tool.name}", getattr(tool, name)))
        AgentLoopBase._cap_text_prompt_length = lambda loop, prompt_ids: self._capped(prompt_ids, cap(loop, prompt_ids))
        threading.Thread(target=self._look, daemon=True).start()

    def take(self) -> EndedSessions:
        """What ended since the last call."""
        taken, self.ended = self.ended, EndedSessions()
        return taken

    def overdue(self, now: float) -> str | None:
        """A line on the sessions that may never end and were not named yet; None where there is none."""
        limit, known = SECONDS_BEFORE_ANY, "none has finished yet"
        if self.finished:
            median = statistics.median(self.finished)
            limit, known = max(LEAST_SECONDS, TIMES_MEDIAN * median), f"the median of the finished is {median:.2g} s"
        new = [s for s in list(self.running.values()) if now - s.began > limit and not s.named]
        for session in new:
            session.named = True
        if not new:
            return None
        first = min(new, key=lambda session: session.began)
        others = f", as {len(new) - 1} others have" if len(new) > 1 else ""
        return (
            f"gpg_verl: session {first.number} of the prompt {first.prompt} has run for {now - first.began:.0f} s"
            f"{others} ({known}), and waits for {first.waits_for}. +algorithm.gpg.max_session_seconds=N ends such "
            "sessions as failed ones"
        )

    def _look(self) -> None:
        """In a thread: an agent loop that blocks holds up its worker's event loop."""
        while True:
            time.sleep(LOOK_SECONDS)
            if (line := self.overdue(time.monotonic())) is not None:
                print(line, flush=True)

    def _watched(self, run: Callable) -> Callable:
        async def watched(sampling_params, trajectory, **kwargs):
            validates, began = bool(trajectory["validate"]), time.monotonic()
            session = Session(kwargs["uid"], kwargs["session_id"], prompt_of(kwargs), validates, began)
            self.current.set(session)
            self.running[id(session)] = session
            failures = []
            try:
                async with asyncio.timeout(self.max_seconds) as limit:
                    result = await run(sampling_params, trajectory, **kwargs)
                self.finished.append(time.monotonic() - began)
                return result
            except Exception as error:
                if not limit.expired():
                    failures = [(session.uid, error_of(error))]
                    raise
                ended = f"not ended after algorithm.gpg.max_session_seconds={self.max_seconds:g}"
                failures = [(session.uid, f"{ended}, waiting for {session.waits_for}")]
                raise TimeoutError(failures[0][1]) from error
            finally:
                del self.running[id(session)]
                if not validates:
                    self.ended.add(EndedSessions(1, failures))

        return watched

    def _waiting(self, what: str, function: Callable) -> Callable:
        async def waiting(*args, **kwargs):
            session = self.current.get()
            if session is None:
                return await function(*args, **kwargs)
            session.waits_for = what
            try:
                result = await function(*args, **kwargs)
            except Exception:  # cancelled, the session is still one that waited for this
                session.waits_for = AGENT_LOOP
                raise
            session.waits_for = AGENT_LOOP
            return result

        return waiting

    def _capped(self, prompt_ids: list[int], kept: list[int]) -> list[int]:
        session = self.current.get()
        if session is not None and not session.validates and len(kept) < len(prompt_ids):
            self.ended.truncated.add(session.uid)
        return kept


def prompt_of(row: Mapping[str, Any]) -> str:
    """A row of the data set, as messages name it."""
    last = (list(row.get("raw_prompt", ())) or [""])[-1]
    text = str(last.get("content") if isinstance(last, Mapping) else last)
    return f"{shorten(text)!r} (index {row.get('index')}, uid {row['uid']})"


def error_of(error: Exception) -> str:
    """In one line, with the place that raised it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{shorten(f'{type(error).__name__}: {error}')} ({place.filename}:{place.lineno})"


def shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


class WatchedSessions(TrainerMixin):
    """The trainer's part; mixed in before one of veRL's trainer classes. Takes `settings` from who mixes it in."""

    def __init__(self, config):
        self.sessions = EndedSessions()  # of the running step
        super().__init__(config)

    def fit(self, agent_loop_manager):
        self.agent_loop_manager = agent_loop_manager  # before veRL's `fit` does: one of its workers may be dead already
        self._ask_agent_loops(_install, self.settings.max_session_seconds)
        try:
            super().fit(agent_loop_manager)
        except (Died, SessionsFailed):
            raise
        except Exception:
            self._end_if_too_many_failed()  # what stands behind a step without a single row
            raise

    def step(self, metrics, timing_raw):
        batch = super().step(metrics, timing_raw)
        metrics.update(self.sessions.metrics())
        if self.sessions.failures:
            print(f"gpg_verl: {self.sessions.summary(self._num_sessions())}", flush=True)
        self.sessions = EndedSessions()
        return batch

    def on_sample_end(self):
        self._end_if_too_many_failed()
        super().on_sample_end()

    def _end_if_too_many_failed(self):
        for ended in self._ask_agent_loops(_take):
            self.sessions.add(ended)
        self.sessions.end_if_too_many(self._num_sessions(), self.settings.max_failed_share)

    def _num_sessions(self) -> int:
        """Of a step that asks for no further prompts."""
        return self.config.data.train_batch_size * self.config.actor_rollout_ref.rollout.n

    def _ask_agent_loops(self, question: Callable, *arguments) -> list:
        if not hasattr(self, "agent_loop_manager"):  # not before `fit`
            return []
        workers = self.agent_loop_manager.agent_loop_workers
        return ray.get([worker.__ray_call__.remote(question, *arguments) for worker in workers])


def _install(worker: Any, max_seconds: float | None) -> None:
    worker.gpg_sessions = SessionWatch(worker, max_seconds)


def _take(worker: Any) -> EndedSessions:
    return worker.gpg_sessions.take()
