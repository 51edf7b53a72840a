"""The guarded verifier: bounded, replaced, shared by threads, and gone when its parent goes."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from reward_fns import compute_score, guard
from reward_fns.verdict import Killed

ROOT = Path(__file__).parents[1]
MATH = "lighteval/MATH"
TOWER = "9^{9^{9^{9}}}"
HANGS = f"\\boxed{{{TOWER}}}"
LONG_WAY = ("x^2+x", "x(x+1)")


@pytest.fixture
def pool():
    pool = guard.Pool(workers=2, memory_mb=1024)
    yield pool
    pids = pool.processes()
    pool.close()
    assert gone(pids)


def ask(pool, gold, text, seconds=20):
    return pool.ask({"function": "equal", "arguments": [[gold], [text], "1", 0.0]}, seconds)


def gone(pids, seconds=5.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("gold", "text", "equal"),
    [
        ("x^2+x", "x(x+1)", True),
        ("x^2+x", "x(x+2)", False),
        ("\\sqrt{8}", "2\\sqrt{2}", True),
        ("x", "no answer", False),
        ("x", "\\frac{", False),
        ("\\frac{1}{0}", "\\frac{1}{0}", False),
        ("\\infty", "-\\infty", False),
        ("\\infty", "2", False),
        # Equations are, but for a factor.
        (("y", "2x"), ("2y", "4x"), True),
        (("y", "2x"), ("y-2x", "0"), True),
        (("y", "2x"), ("y", "3x"), False),
    ],
)
def test_it_answers(gold, text, equal):
    assert guard.equal(*((x,) if isinstance(x, str) else x for x in (gold, text))) is equal


def test_a_formula_without_a_value_is_said_to_be_undefined():
    assert [guard.defined(text) for text in ("\\frac{1}{0}", "x", "\\frac{")] == [False, True, True]


def test_a_comparison_is_remembered(monkeypatch):
    asked = []
    monkeypatch.setattr(guard.Pool, "ask", lambda self, request, seconds: asked.append(request) or True)
    results = [compute_score(MATH, "\\boxed{\\sin 17x}", "\\cos 17y") for _ in range(8)]
    assert [r["acc"] for r in results] == [1.0] * 8
    assert [r["function"] for r in asked] == ["defined", "equal"], "a group of eight equal answers costs one"


def test_time_is_bounded_and_the_worker_replaced(pool):
    ask(pool, *LONG_WAY)
    forker, worker = pool.processes()
    start = time.monotonic()
    with pytest.raises(Killed) as error:
        ask(pool, "5", TOWER, seconds=0.5)
    assert error.value.reason == "time"
    assert 0.5 <= time.monotonic() - start < 10
    assert gone([worker])
    assert ask(pool, *LONG_WAY)
    assert pool.processes()[0] == forker, "replaced by a fork, not by a new start"


@pytest.mark.parametrize(("stopped_for", "right"), [(1.0, True), (20.0, False)])
def test_a_worker_that_the_machine_does_not_run_loses_no_time(pool, stopped_for, right):
    ask(pool, *LONG_WAY)
    worker = pool.processes()[1]
    os.kill(worker, signal.SIGSTOP)
    timer = threading.Timer(stopped_for, lambda: alive(worker) and os.kill(worker, signal.SIGCONT))
    timer.start()
    start = time.monotonic()
    try:
        if right:
            assert ask(pool, *LONG_WAY, seconds=0.5)
        else:
            with pytest.raises(Killed):
                ask(pool, *LONG_WAY, seconds=0.5)
            assert 2 <= time.monotonic() - start < 10
    finally:
        timer.cancel()


def test_memory_is_bounded_and_the_worker_replaced():
    with contextlib.closing(guard.Pool(workers=1, memory_mb=64)) as pool:
        ask(pool, *LONG_WAY)
        worker = pool.processes()[1]
        with pytest.raises(Killed) as error:
            ask(pool, "5", "2^{9999999999}", seconds=60)
        assert error.value.reason == "memory"
        assert gone([worker])
        assert ask(pool, *LONG_WAY)


def test_a_worker_that_dies_costs_no_honest_answer(pool):
    ask(pool, *LONG_WAY)
    os.kill(pool.processes()[1], signal.SIGKILL)
    assert ask(pool, *LONG_WAY)


def test_a_forker_that_dies_takes_its_workers_along_and_is_replaced(pool):
    ask(pool, *LONG_WAY)
    before = pool.processes()
    os.kill(before[0], signal.SIGKILL)
    assert gone(before)
    assert ask(pool, *LONG_WAY)
    assert before[0] not in pool.processes()


def test_an_item_that_crashes_its_worker_twice_is_counted(pool):
    ask(pool, *LONG_WAY)
    kill = threading.Thread(target=kill_workers_for, args=(pool, 3.0))
    kill.start()
    with pytest.raises(Killed) as error:
        ask(pool, "5", TOWER, seconds=20)
    assert error.value.reason == "crash"
    kill.join()
    assert ask(pool, *LONG_WAY)


def kill_workers_for(pool, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for pid in pool.processes()[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)


def test_the_score_of_a_killed_item_is_zero_and_counted():
    # Cosine and format would give a wrong answer other scores.
    result = compute_score("knoveleng/open-s1", f"\n</think>\n{HANGS}", "5", verify_timeout=0.3)
    assert (result["score"], result["acc"], result["killed"], result["format"]) == (0.0, 0.0, 1.0, 1.0)


def test_many_threads_with_hanging_items_among_them():
    def score(i):
        if i % 20 == 0:
            return compute_score(MATH, HANGS, f"{i}", verify_timeout=0.3)
        return compute_score(MATH, f"\\boxed{{x+{i}+0}}", f"{i}+x")

    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(score, range(100)))
    assert [r["killed"] for r in results] == [float(i % 20 == 0) for i in range(100)]
    assert [r["acc"] for r in results] == [float(i % 20 != 0) for i in range(100)]
    assert len(guard.pool().processes()) <= 1 + 4


def test_asyncio_goes_on_while_an_item_hangs():
    async def run():
        loop = asyncio.get_running_loop()
        hanging = loop.run_in_executor(None, lambda: compute_score(MATH, HANGS, "5", verify_timeout=4.0))
        honest = [(f"\\boxed{{y+{i}+0}}", f"{i}+y") for i in range(10)]
        done = [await loop.run_in_executor(None, compute_score, MATH, *item) for item in honest]
        assert not hanging.done()
        return done, await hanging

    compute_score(MATH, "\\boxed{z+1}", "1+z")  # the pool is up
    done, hanging = asyncio.run(run())
    assert all(r["acc"] == 1 for r in done)
    assert hanging["killed"] == 1


def score_in_fork(queue):
    queue.put((compute_score(MATH, "\\boxed{w+7}", "7+w")["acc"], guard.pool().processes()))


def test_a_forked_process_has_a_pool_of_its_own():
    assert compute_score(MATH, "\\boxed{w+6}", "6+w")["acc"] == 1
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=score_in_fork, args=(queue,))
    child.start()
    right, pids = queue.get(timeout=60)
    child.join(10)
    assert right == 1
    assert not set(pids) & set(guard.pool().processes())
    assert gone(pids)
    assert compute_score(MATH, "\\boxed{w+8}", "8+w")["acc"] == 1


def test_a_late_reply_never_meets_the_next_item():
    with contextlib.closing(guard.Pool(workers=1, memory_mb=512)) as pool:
        for _ in range(3):
            assert ask(pool, *LONG_WAY)
            with pytest.raises(Killed):
                ask(pool, "5", "\\lfloor 10^{99999} \\pi\\rfloor", seconds=0.1)  # takes 0.7 s


@pytest.mark.parametrize("end", ["SIGKILL", "SIGINT", "SIGTERM", "return"])
def test_nobody_is_left_behind(end):
    """The parent ends in whatever way while one worker computes in C and another is idle."""
    program = f"""
        import signal, sys, threading, time
        from reward_fns import compute_score, guard
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits SIGINT ignored
        for i in range(2):
            threading.Thread(target=compute_score, args=("{MATH}", "\\\\boxed{{x+5}}", "5+x"), daemon=True).start()
        compute_score("{MATH}", "\\\\boxed{{x+6}}", "6+x")
        hang = lambda: compute_score("{MATH}", r"{HANGS}", "5", verify_timeout=60)
        threading.Thread(target=hang, daemon=True).start()
        time.sleep(0.5)
        print(*guard.pool().processes(), flush=True)
        if "{end}" != "return":
            time.sleep(60)
    """
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, **piped)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) >= 2
    if end != "return":
        assert all(alive(pid) for pid in pids)
        parent.send_signal(getattr(signal, end))
    parent.wait(20)
    parent.stdout.close()
    assert gone(pids)


def test_a_process_without_mathematics_starts_no_other():
    program = """
        import sys
        from reward_fns import compute_score, guard
        assert compute_score("openai/gsm8k", "#### 5", "5")["acc"] == 1
        assert compute_score("lighteval/MATH", r"\\boxed{5}", "5")["acc"] == 1
        assert guard.pool().processes() == []
        heavy = {"sympy", "math_verify", "torch", "numpy", "verl", "gpg_verl"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("variable", ["GPG_VERIFY_TIMEOUT", "GPG_VERIFY_MEMORY", "GPG_VERIFY_WORKERS"])
@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
def test_environment_variables_that_are_wrong(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{variable}={value}: expected a number above 0"):
        guard.from_environment(variable, 5)


def test_the_environment_variable_bounds_time(monkeypatch):
    monkeypatch.setenv("GPG_VERIFY_TIMEOUT", "0.3")
    start = time.monotonic()
    assert compute_score(MATH, HANGS, "5")["killed"] == 1
    assert time.monotonic() - start < 4, "the default is 5"
