"""A preemption that loses nothing: asked to leave, a run ends its step, saves it, and has an exit code of its own.

Who preempts tells the driver: by SIGUSR1 (`sbatch --signal=B:USR1@300`), or by SIGTERM where `GPG_GRACE` says for how
many seconds the machine stays (Kubernetes' grace period). The trainer is another process, maybe on another node, and
busy; it reads the wish from Ray's key-value store, between steps and while it waits for the rollout.
"""

from __future__ import annotations

import math
import os
import threading
import time

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later
GRACE = "GPG_GRACE"
SLACK_SECONDS = 5.0  # for a run's processes to leave, of what the grace has

NAMESPACE = "gpg_preemption"


class Preempted(RuntimeError):
    """The run leaves as it was asked to."""


def grace_seconds() -> float | None:
    """Of `GPG_GRACE`: how long after the signal the machine stays; None where nobody said.

    Raises:
        ValueError: it is no number above 0.
    """
    text = os.environ.get(GRACE)
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{GRACE}={text}: expected seconds, a number above 0, from the signal to the machine's end")
    return seconds


def ask(seconds: float | None) -> None:
    """Asks this process's run to leave, from a signal's handler: the driver may wait in Ray at that moment, so the
    question goes out from another thread.
    """
    until = math.inf if seconds is None else time.time() + seconds
    threading.Thread(target=_put, args=(until,), daemon=True).start()


def _put(until: float) -> None:
    import ray
    from ray.experimental import internal_kv

    while not ray.is_initialized():  # it is just starting
        time.sleep(1.0)
    internal_kv._internal_kv_put(_key(), str(until), namespace=NAMESPACE)


def _key() -> str:
    """The same in all processes of a run, another in other runs on its cluster."""
    import ray

    return ray.get_runtime_context().get_job_id()


def asked() -> float | None:
    """Until when the run may stay (`time.time()`), infinity where nobody said; None where it was not asked to leave."""
    from ray.experimental import internal_kv

    answer = internal_kv._internal_kv_get(_key(), namespace=NAMESPACE)
    return None if answer is None else float(answer)


class Leave:
    """When a run leaves.

    Args:
        asked: as the function above.
        clock: `time.time`.
    """

    def __init__(self, asked=asked, clock=time.time):
        self.asked, self.clock = asked, clock
        self.began: float | None = None  # this step
        self.step_seconds = 0.0  # of the last step, with all that followed it
        self.save_seconds = 0.0  # of the last save

    def between_steps(self) -> bool:
        """Whether to leave now; called where a step begins."""
        now = self.clock()
        if self.began is not None:
            self.step_seconds = now - self.began
        self.began = now
        return self.asked() is not None

    def while_waiting(self) -> None:
        """Called while the rollout is waited for.

        Raises:
            Preempted: the step at hand, judged by the last one, would not be done and saved in time.
        """
        until = self.asked()
        if until is None or until == math.inf or self.began is None:
            return
        now = self.clock()
        rest = max(0.0, self.began + self.step_seconds - now) + self.save_seconds + SLACK_SECONDS
        if now + rest > until:
            raise Preempted(
                f"asked to leave within {max(0.0, until - now):.0f} s, and the step at hand would take {rest:.0f} s "
                "more with its save"
            )
