"""The guarded verifier's own processes: one forker, and the workers that it forks.

The forker imports math-verify once and then only forks, kills and reaps. A worker parses what a model wrote, so it is
bounded: memory by RLIMIT_AS, no file can grow, no core is written; time by the process that asks, which has it killed.

Nobody is left behind: the forker looks every second whether the process that started it is still its parent, and
reads the end of their socket at once; the kernel kills the workers when the forker ends (PR_SET_PDEATHSIG), even in
the middle of a computation that holds the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import resource
import select
import signal
import socket
from functools import lru_cache

PR_SET_PDEATHSIG = 1

# Parsing and comparing these once fills the parser's tables and loads what sympy imports late; every worker then shares
# it. A first comparison takes 0.2 s, a second one 0.005 s.
WARM_UP = (
    "12", "-3.5", "\\frac{1}{2}", "12\\frac{3}{5}", "2\\sqrt{3}+\\pi", "x^2-3x=4", "(1,2)", "[0,\\infty)", "1,2,3",
    "\\{1,2\\}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\text{Monday}", "x\\le 5", "10^{-3}", "30^\\circ",
    "\\binom{5}{2}", "\\log_2 8", "\\sin 2t", "3+4i", "|x|", "f(x)=x",
    "4:30p.", "9999.857142857143", "x, y \\text{ or } z.",
)  # fmt: skip


def fork_on_request(control_fd: int, parent: int, memory_mb: int) -> None:
    """The forker: `fork` with a socket starts a worker that serves it, `kill PID` ends one; until the parent ends."""
    _import_verifier()
    control = socket.socket(fileno=control_fd)
    control.send(b"ready")
    forker = os.getpid()
    children: set[int] = set()
    while os.getppid() == parent:
        if not select.select([control], [], [], 1)[0]:
            _reap(children)
            continue
        message, fds, _, _ = socket.recv_fds(control, 32, 1)
        if not message:
            break
        _reap(children)
        if message == b"fork":
            pid = os.fork()
            if pid == 0:
                control.close()
                _serve(socket.socket(fileno=fds[0]), forker, memory_mb)
            os.close(fds[0])
            children.add(pid)
            control.send(str(pid).encode())
        else:
            _kill(int(message.split()[1]), children)
            control.send(b"killed")
    for pid in list(children):
        _kill(pid, children)  # and reaped: in a container nobody else may


def _kill(pid: int, children: set[int]) -> None:
    if pid in children:  # else it has ended by itself
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        children.discard(pid)


def _reap(children: set[int]) -> None:
    for pid in list(children):
        if os.waitpid(pid, os.WNOHANG)[0]:
            children.discard(pid)


def _serve(channel: socket.socket, forker: int, memory_mb: int) -> None:
    """A worker: one JSON line in, one out, until the channel ends or an item took too much memory."""
    try:
        _bound_this_process(forker, memory_mb)
        allowance = memory_mb << 10
        start = _peak_kb()
        for line in channel.makefile("rb"):
            reply = _answer(json.loads(line))
            # math-verify swallows MemoryError like any other: a wrong answer that took a good part of the allowance
            # is one whose verification was cut short.
            heavy = _peak_kb() - start > allowance / 4
            if heavy and not reply.get("right"):
                reply = {"killed": "memory"}
            channel.sendall(json.dumps(reply).encode() + b"\n")
            if heavy:
                break
    finally:
        os._exit(0)


def _bound_this_process(forker: int, memory_mb: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != forker:
        os._exit(0)
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    # What the process has already, and the allowance.
    for limit, value in (
        (resource.RLIMIT_AS, now + (memory_mb << 20)),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _import_verifier() -> None:
    import math_verify.grader
    import math_verify.parser

    logging.disable(logging.CRITICAL)
    for gold in WARM_UP:
        math_verify.grader.verify(parse_gold(gold), parse_answer("\\boxed{3\\sqrt{2}}"), timeout_seconds=None)
    parse_answer("The answer is 1/2, or $x = 5$. So it is 7%.")
    parse_gold.cache_clear()
    gc.collect()
    gc.freeze()  # a worker's collector then leaves the shared memory alone
    # Nothing of what follows is for a terminal: a crash report of a worker least of all.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _answer(request: dict) -> dict:
    from math_verify.grader import verify

    try:
        golds = [gold for text in request["golds"] if (gold := parse_gold(text))]
        if not golds:
            return {"unparsable": True}
        if not request["text"]:
            return {"right": False, "pred": ""}
        parsed = parse_answer(request["text"])
        # Time is bounded by the asking process: math-verify's own SIGALRM does not interrupt a long C call.
        right = any(verify(gold, parsed, timeout_seconds=None) and not _far_apart(gold, parsed) for gold in golds)
        return {"right": right, "pred": next((p for p in parsed if isinstance(p, str)), "")}
    except MemoryError:
        return {"killed": "memory"}


@lru_cache(maxsize=4096)
def parse_gold(gold: str) -> list:
    """What math-verify reads in a gold answer; empty if it can be compared with nothing."""
    from math_verify.parser import parse
    from sympy import nan, zoo

    parsed = parse(f"\\boxed{{{gold}}}", parsing_timeout=None)
    if any(p in (nan, zoo) for p in parsed if not isinstance(p, str)):
        return []
    if all(isinstance(p, str) for p in parsed):
        # Only text, to be compared as text: words are an answer, the ruins of a formula are none.
        return [p for p in parsed if any(c.isalnum() for c in p) and p.count("{") == p.count("}")]
    return parsed


def _far_apart(gold: list, answer: list) -> bool:
    """Whether two numbers differ by more than a millionth of their size: math-verify rounds to six decimals, so
    that all numbers below 0.0000005 are equal to it."""
    try:
        a, b = (abs(complex(next(p for p in parsed if not isinstance(p, str)).evalf())) for parsed in (gold, answer))
    except (StopIteration, AttributeError, TypeError, ValueError, OverflowError):
        return False  # no numbers
    return abs(a - b) > 1e-6 * max(a, b)


def parse_answer(text: str) -> list:
    from math_verify.parser import parse

    return parse(text, parsing_timeout=None)
