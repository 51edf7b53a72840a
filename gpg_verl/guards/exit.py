"""How a run ends: its last words, a preemption that loses nothing, and nothing that stays behind.

By themselves veRL (0.9.1) and Ray (2.60) end a run with traces and what Ray's processes log below them; a worker was
seen to stay, with all its memory, after a run that ended well; and each run leaves semaphores and its session's folder.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil
from omegaconf import DictConfig, OmegaConf

from gpg_verl.compat.seams import seam
from gpg_verl.guards.placement import cannot_place, report_waits
from gpg_verl.guards.run_folder import how_to_export, how_to_go_on

# Where `python -m verl.trainer.main_ppo` and whoever imports it have veRL's driver.
DRIVERS = ("__main__", "verl.trainer.main_ppo")
STOPS = {signal.SIGINT: "Ctrl-C (SIGINT)", signal.SIGTERM: "SIGTERM"}
MAX_CAUSE_CHARS = 600  # characters of a cause in the last words; the whole of it stands above them

PREEMPTED = 75  # exit code: EX_TEMPFAIL of sysexits.h, try again later
GRACE = "GPG_GRACE"
SLACK_SECONDS = 5.0  # for a run's processes to leave, of what the grace has
NAMESPACE = "gpg_preemption"  # of Ray's key-value store; the key is the run's job, of its own on a shared cluster

LOG_SECONDS = 0.5  # for the workers' last lines to arrive, as Ray gives them where a process exits
LEAVE_SECONDS = 10.0  # for processes to leave by themselves
RAYS = re.compile(r"^ray|/ray/")  # commands of Ray's processes
# Commands of what is ended if it does not leave; a logger's service may have more to send.
ENDED = re.compile(rf"{RAYS.pattern}|^VLLM::|from multiprocessing|from reward_fns")
# What processes make for themselves in shared memory: veRL's buckets of weights, what Python, torch and NCCL share.
SHARED_MEMORY = re.compile(r"verl_weights_|psm_|sem\.mp-|torch_|nccl-")


def report_end(ours: Callable[[DictConfig], bool]) -> None:
    """Wraps `main_ppo`'s `run_ppo`, which starts Ray and waits for the run: veRL's `main` has no seam around it.

    A run for whose config `ours` holds then ends with exit code 1 and its cause, 130 by Ctrl-C, or 143 by SIGTERM, as a
    shell reports them; with 75 where it was preempted.
    """
    for name in DRIVERS:
        module = sys.modules.get(name)
        if hasattr(module, "run_ppo") and not hasattr(module.run_ppo, "__wrapped__"):
            module.run_ppo = _with_last_words(seam(module, "run_ppo", ("config", "task_runner_class")), ours)


def _with_last_words(original, ours):
    @functools.wraps(original)
    def run_ppo(config, task_runner_class):
        import ray

        if not ours(config):
            return original(config, task_runner_class)
        try:
            runner = Runner(task_runner_class, config, grace_seconds())
        except ValueError as error:
            raise SystemExit(f"gpg_verl: {error}") from None
        callers_ray = ray.is_initialized()  # which it needs for longer than this run
        # Of a run that ends well too where Nsight's profiles are among them (veRL 0.9.1).
        keep_logs, cause = OmegaConf.select(config, "global_profiler.tool") == "nsys", None
        try:
            with report_waits():
                result = original(config, runner)
        except KeyboardInterrupt:
            cause, code = f"stopped by {STOPS[runner.stopped_by]}", 128 + runner.stopped_by
        except Exception as error:
            cause, code = _cause(error)
            keep_logs = code != PREEMPTED
        finally:
            if not callers_ray:
                end_ray(keep_logs)
        sys.stdout.flush()
        if cause is None:
            if (said := how_to_export(config)) is not None:
                print(f"gpg_verl: {said}", file=sys.stderr)
            return result
        print(f"\ngpg_verl: the run has ended: {cause}\ngpg_verl: {how_to_go_on(config)}", file=sys.stderr)
        raise SystemExit(code)

    return run_ppo


class Runner:
    """veRL's class of task runners, which `run_ppo` touches when it has joined Ray: that ends a run there that this Ray
    will never have room for, and is after Ray's native handler of SIGTERM, which aborts the process (2.60).
    """

    def __init__(self, runner, config: DictConfig, grace: float | None = None):
        self._runner, self._config, self._grace = runner, config, grace
        self.stopped_by = signal.SIGINT
        self._on(signal.SIGUSR1, self._ask)

    def __getattr__(self, name):
        if message := cannot_place(self._config):
            raise SystemExit(f"\ngpg_verl: this run cannot start.\n  - {message}\n")
        self._on(signal.SIGTERM, self._stop if self._grace is None else self._ask)
        return getattr(self._runner, name)

    def _on(self, number, handler):
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        if number == signal.SIGTERM:
            self._on(number, self._stop)  # who sends it twice means it
        ask_to_leave(self._grace)

    def _stop(self, number, frame):
        # Ray hands on a KeyboardInterrupt and no other where it waits; a SystemExit ends the process on the spot.
        self.stopped_by = number
        raise KeyboardInterrupt


def _cause(error: Exception) -> tuple[str, int]:
    """The error in one line and the exit code, after it was printed as it came where the run did not mean it."""
    from gpg_verl.guards.liveness import own_words, root_cause

    cause = root_cause(error)
    if isinstance(cause, Preempted):
        return str(cause), PREEMPTED
    if cause is not error:
        # Its text is the trace of the process that failed; the driver's own says only that it waited.
        print(f"\n{error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
    return own_words(cause)[:MAX_CAUSE_CHARS], 1


# ---- a preemption: asked to leave, a run ends its step, saves it, and ends
#
# The driver is told by SIGUSR1 (`sbatch --signal=B:USR1@300`), or by SIGTERM where `GPG_GRACE` says for how many
# seconds the machine stays (Kubernetes). The trainer is another process, maybe on another node, and busy; it reads the
# wish from Ray's key-value store, between steps and while it waits for the rollout.


class Preempted(RuntimeError):
    """The run leaves as it was asked to."""


def grace_seconds() -> float | None:
    """Of `GPG_GRACE`: how long the machine stays after the signal; None where unsaid. ValueError if not above 0."""
    if not (text := os.environ.get(GRACE)):
        return None
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise ValueError(f"{GRACE}={text}: expected seconds, a number above 0, from the signal to the machine's end")


def ask_to_leave(seconds: float | None) -> None:
    """Asks this process's run to leave, from another thread: the driver may wait in Ray where the signal comes."""
    until = math.inf if seconds is None else time.time() + seconds

    def put() -> None:
        import ray
        from ray.experimental import internal_kv

        while not ray.is_initialized():  # it is just starting
            time.sleep(1.0)
        internal_kv._internal_kv_put(ray.get_runtime_context().get_job_id(), str(until), namespace=NAMESPACE)

    threading.Thread(target=put, daemon=True).start()


def asked_until() -> float | None:
    """Until when the run may stay (`time.time()`), infinity where nobody said; None where it was not asked to leave."""
    import ray
    from ray.experimental import internal_kv

    answer = internal_kv._internal_kv_get(ray.get_runtime_context().get_job_id(), namespace=NAMESPACE)
    return None if answer is None else float(answer)


class Leave:
    """When a run leaves. Args: `asked_until`, and `time.time`."""

    def __init__(self, asked=asked_until, clock=time.time):
        self.asked, self.clock = asked, clock
        self.began: float | None = None  # this step
        self.step_seconds = 0.0  # of the last step, with all that followed it
        self.save_seconds = 0.0  # of the last save

    def between_steps(self) -> bool:
        """Whether to leave now; called where a step begins."""
        now = self.clock()
        self.step_seconds, self.began = now - (now if self.began is None else self.began), now
        return self.asked() is not None

    def while_waiting(self) -> None:
        """Called while the rollout is waited for.

        Raises:
            Preempted: the step at hand, judged by the last one, would not be done and saved in time.
        """
        until, now = self.asked(), self.clock()
        if until is None or self.began is None:
            return
        rest = max(0.0, self.began + self.step_seconds - now) + self.save_seconds + SLACK_SECONDS
        if now + rest > until:
            raise Preempted(
                f"asked to leave within {max(0.0, until - now):.0f} s, and the step at hand would take {rest:.0f} s "
                "more with its save"
            )


# ---- nothing stays


def end_ray(keep_logs: bool) -> None:
    """Ends the Ray that this process started, if it did, and removes what it leaves, but for the logs to be kept."""
    import ray

    time.sleep(LOG_SECONDS if ray.is_initialized() else 0)
    node, processes = ray._private.worker._global_node, []
    for service in psutil.Process().children():
        if RAYS.search(_command(service)):
            with contextlib.suppress(psutil.NoSuchProcess):
                processes += [service, *service.children(recursive=True)]
    shared_memory = _shared_memory(processes)
    ray.shutdown()
    left = [process for process in psutil.wait_procs(processes, LEAVE_SECONDS)[1] if ENDED.search(_command(process))]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, LEAVE_SECONDS)
    for file in shared_memory:
        file.unlink(missing_ok=True)
    if node is not None and node.is_head():
        _remove_session(Path(node.get_session_dir_path()), keep_logs)


def _command(process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""  # it is gone


def _shared_memory(processes: list) -> list[Path]:
    """The files that they have mapped there, by inode: a semaphore is mapped before it has its name."""
    inodes = set()
    for process in processes:
        with contextlib.suppress(OSError):  # gone
            maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
            inodes.update(map(int, re.findall(r"(\d+)\s+/dev/shm/", maps)))
    files = [file for file in Path("/dev/shm").glob("*") if SHARED_MEMORY.match(file.name)]
    return [file for file in files if file.exists() and file.stat().st_ino in inodes]


def _remove_session(session: Path, keep_logs: bool) -> None:
    """Of Ray's folder, where `session_latest` leads to this one until another Ray starts."""
    logs, latest = session / "logs", session.with_name("session_latest")
    if keep_logs and logs.is_dir():
        print(f"gpg_verl: Ray's logs are in {logs}", file=sys.stderr)
        for entry in set(session.iterdir()) - {logs}:
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
        return
    shutil.rmtree(session, ignore_errors=True)
    if latest.is_symlink() and latest.readlink() == session:
        latest.unlink(missing_ok=True)
