"""The last words of a run that fails or is stopped: what ended it, what is saved, how to go on.

Without them they are a stack trace of Hydra, Ray and veRL, with what Ray's processes log as they end below it.
"""

from __future__ import annotations

import functools
import signal
import sys
import threading
import traceback
from collections.abc import Callable

from omegaconf import DictConfig, OmegaConf

from gpg_verl.compat.seams import seam
from gpg_verl.guards import placement, preemption, run_folder
from gpg_verl.guards.liveness import Died
from gpg_verl.guards.remains import nothing_stays

# Where `python -m verl.trainer.main_ppo` and whoever imports it have veRL's driver.
DRIVERS = ("__main__", "verl.trainer.main_ppo")

STOPS = {signal.SIGINT: "Ctrl-C (SIGINT)", signal.SIGTERM: "SIGTERM"}
stopped_by: list[int] = []  # the signal, where it was not SIGINT

LONGEST = 600  # characters of a cause in the last words; the whole of it stands above them


def report_end(ours: Callable[[DictConfig], bool]) -> None:
    """Wraps `main_ppo`'s `run_ppo`, which starts Ray and waits for the run: veRL's `main` has no seam around it.

    A run then ends with exit code 1 and its cause, 130 by Ctrl-C, or 143 by SIGTERM, as a shell reports them; with 75
    where it was preempted (preemption.py).

    Args:
        ours: whether that is meant for a run with this config; other runs of this process go on as in veRL.
    """
    for name in DRIVERS:
        module = sys.modules.get(name)
        if hasattr(module, "run_ppo") and not hasattr(module.run_ppo, "__wrapped__"):
            module.run_ppo = _with_last_words(seam(module, "run_ppo", ("config", "task_runner_class")), ours)


def _with_last_words(original, ours):
    @functools.wraps(original)
    def run_ppo(config, task_runner_class):
        if not ours(config):
            return original(config, task_runner_class)
        try:
            grace = preemption.grace_seconds()
        except ValueError as error:
            raise SystemExit(f"gpg_verl: {error}") from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, lambda number, frame: preemption.ask(grace))
        # Nsight's profiles are among Ray's logs (veRL 0.9.1).
        with nothing_stays(keep_logs=OmegaConf.select(config, "global_profiler.tool") == "nsys") as remains:
            try:
                with placement.waits_told():
                    return original(config, _Runner(placement.AsksRayFirst(task_runner_class, config), grace))
            except KeyboardInterrupt:
                number = stopped_by.pop() if stopped_by else signal.SIGINT
                cause, code = f"stopped by {STOPS[number]}", 128 + number
            except Exception as error:
                cause, code = _cause(error)
                remains.keep_logs = code != preemption.EXIT_CODE
        sys.stdout.flush()
        print(f"\ngpg_verl: the run has ended: {cause}\ngpg_verl: {run_folder.how_to_go_on(config)}", file=sys.stderr)
        raise SystemExit(code)

    return run_ppo


class _Runner:
    """veRL's class of task runners. It is first touched between `ray.init`, whose native handler of SIGTERM aborts the
    process (Ray 2.60), and the wait for the run.
    """

    def __init__(self, runner, grace: float | None):
        self._runner = runner
        self._grace = grace

    def __getattr__(self, name):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _leave if self._grace is None else self._ask)
        return getattr(self._runner, name)

    def _ask(self, number, frame):
        signal.signal(signal.SIGTERM, _leave)  # who sends it twice means it
        preemption.ask(self._grace)


def _leave(number, frame):
    # Ray, waiting for a result, hands on a KeyboardInterrupt and no other; a SystemExit ends the process on the spot.
    stopped_by.append(number)
    raise KeyboardInterrupt


def _cause(error: Exception) -> tuple[str, int]:
    """The error in one line and the exit code, after it was printed as it came where the run did not mean it."""
    import ray

    told = error
    while isinstance(error, ray.exceptions.RayTaskError):  # one for each process it came through
        error = error.cause
    if isinstance(error, preemption.Preempted):
        return str(error), preemption.EXIT_CODE
    if told is not error:
        # Its text is the trace of the process that failed; the driver's own says only that it waited.
        print(f"\n{told}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
    if isinstance(error, Died):
        return str(error).splitlines()[0], 1
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:LONGEST], 1
