"""The guarded verifier, seen from the process that asks: a pool of worker processes with bounds on time and memory.

    equal(("\\sqrt{8}",), ("2\\sqrt{2}",))  ->  True

Started on first use, once per process; safe to call from any number of threads. A worker that takes too long is ended
and replaced, its item raises Killed. All processes end with this one, however it ends (see worker.py).

    GPG_VERIFY_TIMEOUT    seconds that a worker computes for one answer (5), on however busy a machine
    GPG_VERIFY_MEMORY     MB that one answer may take (512)
    GPG_VERIFY_WORKERS    most worker processes, forked as they are needed (4)
"""

import atexit
import json
import math
import os
import queue
import socket
import subprocess
import sys
import threading
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from reward_fns.verdict import Killed

# The kernel bounds the worker's own processor time, so a verdict does not depend on what else the machine does.
# Behind it stands a bound on the clock's time, this many times as long, for a worker that does not even compute.
WALL = 15
# Time for the first process to import sympy: 1.5 s on an idle core.
START_SECONDS = 120


def equal(
    gold: tuple[str, ...],
    answer: tuple[str, ...],
    factor: Fraction = Fraction(1),
    tolerance: float = 0.0,
    timeout: float | None = None,
) -> bool:
    """Whether gold = factor · answer, for formulas or the sides of equations (algebra.equal); what cannot be read is
    not.

    Remembered: a group of equal answers costs one. Raises Killed if the bounds on time (`timeout` in processor seconds,
    by default GPG_VERIFY_TIMEOUT) or memory were exceeded or the worker crashed.
    """
    return _asked("equal", timeout, gold, answer, str(factor), tolerance)


def defined(formula: str, timeout: float | None = None) -> bool:
    """Whether a formula has a value, or is none that can be read: False for 1/0. Raises Killed."""
    return _asked("defined", timeout, formula)


@lru_cache(maxsize=65536)
def _asked(function: str, timeout: float | None, *arguments) -> bool:
    seconds = from_environment("GPG_VERIFY_TIMEOUT", 5) if timeout is None else timeout
    return pool().ask({"function": function, "arguments": arguments}, seconds)


class _Worker(NamedTuple):
    channel: socket.socket
    pid: int

    def ask(self, line: bytes, seconds: float) -> dict:
        """The reply; raises TimeoutError after `seconds` by the clock, another OSError if the worker is gone."""
        self.channel.settimeout(seconds)
        self.channel.sendall(line)
        reply = self.channel.recv(65536)
        if not reply.endswith(b"\n"):
            raise ConnectionError("the worker is gone")
        return json.loads(reply)


class _Forker:
    """The process that has sympy loaded, runs nothing untrusted, and forks, ends and reaps the workers.

    Forking it takes milliseconds where a fresh process would import for seconds, and shares its memory.
    """

    def __init__(self, memory_mb: int):
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.workers: set[int] = set()  # their process ids
        # This process's import path, as it may have been changed since it started.
        program = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from reward_fns import worker; "
        program += "worker.fork_on_request(*map(int, sys.argv[2:]))"
        arguments = [json.dumps(sys.path), str(theirs.fileno()), str(os.getpid()), str(memory_mb)]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the owner's to handle
            )
        self._control.settimeout(START_SECONDS)
        try:
            self._receive()
        except OSError:
            self.close()
            raise RuntimeError(
                "reward_fns: the verifier's process did not start (its own message is above). It needs math-verify: "
                f"{sys.executable} -m pip install 'math-verify>=0.8'"
            ) from None

    def _receive(self) -> str:
        if not (message := self._control.recv(16)):
            raise ConnectionError("the forker is gone")
        return message.decode()

    def fork(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"fork"], [theirs.fileno()])
        pid = int(self._receive())
        self.workers.add(pid)
        return _Worker(ours, pid)

    def end(self, pid: int) -> str:
        self.workers.discard(pid)
        try:
            self._control.send(f"end {pid}".encode())
            return self._receive()
        except OSError:
            return "crash"  # the forker is gone, and its workers with it

    def close(self) -> None:
        self._control.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Pool:
    """At most `workers` worker processes, forked from one parent process that has sympy loaded."""

    def __init__(self, workers: int, memory_mb: int):
        self._memory_mb = memory_mb
        # Tokens: a worker, or None for one that may be forked. Last in, first out keeps few workers busy.
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._idle.put(None)
        self._lock = threading.Lock()
        self._forker: _Forker | None = None
        self._closed = False

    def ask(self, request: dict, seconds: float) -> bool:
        """The worker's reply; raises Killed. Waits for a free worker first, which takes no item's time."""
        line = json.dumps({**request, "seconds": seconds}).encode() + b"\n"
        worker = self._idle.get()
        try:
            # Two attempts: a worker may have retired, or died with the forker, before this item reached it.
            for _ in range(2):
                worker = worker or self._fork()
                try:
                    reply = worker.ask(line, WALL * seconds)
                except OSError as error:
                    reason, worker = self._end(worker), None
                    if reason == "time" or isinstance(error, TimeoutError):
                        raise Killed("time") from None
                else:
                    if "killed" in reply:
                        raise Killed(reply["killed"])
                    return reply["value"]
            raise Killed("crash")
        except BaseException:
            # Also Ctrl-C in mid-answer: a late reply must not meet the next item.
            worker = worker and self._end(worker) and None
            raise
        finally:
            self._idle.put(worker)

    def processes(self) -> list[int]:
        """The ids of the forker and its workers."""
        with self._lock:
            return [] if self._forker is None else [self._forker.process.pid, *self._forker.workers]

    def close(self) -> None:
        """Ends all processes. Items that are being verified raise Killed."""
        with self._lock:
            self._closed = True
            if self._forker is not None:
                self._forker = self._forker.close()

    def _fork(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise Killed("crash")
            for _ in range(2):
                self._forker = self._forker or _Forker(self._memory_mb)
                try:
                    return self._forker.fork()
                except OSError:  # killed from outside; its workers died with it
                    self._forker = self._forker.close()
        raise RuntimeError("reward_fns: the verifier's process died twice while it started a worker; is memory short?")

    def _end(self, worker: _Worker) -> str:
        """Ends the worker if it has not ended, and says why it had: `time`, or `crash` for anything else."""
        worker.channel.close()
        with self._lock:
            return self._forker.end(worker.pid) if self._forker is not None else "crash"


_pool: Pool | None = None
_pool_lock = threading.Lock()


def pool() -> Pool:
    """This process's pool."""
    global _pool
    with _pool_lock:
        if _pool is None:
            workers, memory_mb = from_environment("GPG_VERIFY_WORKERS", 4), from_environment("GPG_VERIFY_MEMORY", 512)
            _pool = Pool(math.ceil(workers), math.ceil(memory_mb))
        return _pool


def close() -> None:
    """Ends this process's pool; the next verification starts another."""
    global _pool
    with _pool_lock:
        if _pool is not None:
            _pool.close()
            _pool = None


def _after_fork_in_child() -> None:
    # The pool belongs to the parent: two processes on one channel would read each other's replies.
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(close)


def from_environment(variable: str, default: float) -> float:
    """The number above 0 that an environment variable holds, or the default; raises ValueError for anything else."""
    text = os.environ.get(variable, "")
    try:
        value = float(text or default)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{variable}={text}: expected a number above 0; unset it for the default of {default}")
    return value
