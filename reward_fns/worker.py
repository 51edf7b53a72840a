"""The guarded verifier's own processes: one forker, and the workers that it forks.

The forker imports sympy once and then only forks, ends and reaps. A worker parses what a model wrote, so it is
bounded by the kernel: processor time by a timer whose signal ends it (ITIMER_PROF), memory by RLIMIT_AS; no file can
grow, no core is written.

Nobody is left behind: the forker looks every second whether the process that started it is still its parent, and
reads the end of their socket at once; the kernel kills the workers when the forker ends (PR_SET_PDEATHSIG), even in
the middle of a computation that holds the interpreter's lock.
"""

import ctypes
import gc
import json
import logging
import os
import resource
import select
import signal
import socket
from pathlib import Path

PR_SET_PDEATHSIG = 1


def fork_on_request(control_fd: int, parent: int, memory_mb: int) -> None:
    """The forker: `fork` with a socket starts a worker that serves it, `end PID` ends one; until the parent ends."""
    from reward_fns import algebra

    logging.disable(logging.CRITICAL)
    algebra.warm_up()
    gc.collect()
    gc.freeze()  # a worker's collector then leaves the shared memory alone
    # Nothing of what follows is for a terminal: a crash report of a worker least of all.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    control = socket.socket(fileno=control_fd)
    control.send(b"ready")
    forker = os.getpid()
    children: set[int] = set()
    while os.getppid() == parent:
        if not select.select([control], [], [], 1)[0]:
            continue
        message, fds, _, _ = socket.recv_fds(control, 32, 1)
        if not message:
            break
        if message == b"fork":
            pid = os.fork()
            if pid == 0:
                control.close()
                _serve(socket.socket(fileno=fds[0]), forker, memory_mb)
            os.close(fds[0])
            children.add(pid)
            control.send(str(pid).encode())
        else:
            control.send(_end(int(message.split()[1]), children).encode())
    for pid in list(children):
        _end(pid, children)  # and reaped: in a container nobody else may


def _end(pid: int, children: set[int]) -> str:
    """Kills the worker unless it has ended; `time` if the kernel ended it at its bound, else `crash`."""
    if pid not in children:
        return "crash"
    children.discard(pid)
    os.kill(pid, signal.SIGKILL)  # until it is reaped the number is its own, and what has ended stays as it ended
    status = os.waitpid(pid, 0)[1]
    return "time" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF else "crash"


def _serve(channel: socket.socket, forker: int, memory_mb: int) -> None:
    """A worker: one JSON line in, one out, until the channel ends or an item took too much memory."""
    try:
        _bound_this_process(forker, memory_mb)
        allowance = memory_mb << 10
        start = _peak_kb()
        for line in channel.makefile("rb"):
            reply = _answer(json.loads(line))
            # sympy may swallow a MemoryError like any other: a wrong answer that took a good part of the allowance is
            # one whose verification was cut short.
            heavy = _peak_kb() - start > allowance / 4
            if heavy and not reply.get("value"):
                reply = {"killed": "memory"}
            channel.sendall(json.dumps(reply).encode() + b"\n")
            if heavy:
                break
    finally:
        os._exit(0)


def _bound_this_process(forker: int, memory_mb: int) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != forker:
        os._exit(0)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = now + (memory_mb << 20)  # what the process has already, and the allowance
    for limit, value in ((resource.RLIMIT_AS, most), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (value, value))


def _peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _answer(request: dict) -> dict:
    from reward_fns import algebra

    signal.setitimer(signal.ITIMER_PROF, request["seconds"])
    try:
        return {"value": bool(getattr(algebra, request["function"])(*request["arguments"]))}
    except MemoryError:
        return {"killed": "memory"}
    except Exception:  # whatever a parser raises: not read, so equal to nothing
        return {"value": request["function"] == "defined"}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
