"""A storm: answers of which one in twenty hangs, explodes or loses its worker, scored from 16 threads.

    python tests/drills/reward_storm.py                        # 2,000 answers, about 2 minutes on 2 cores
    GPG_VERIFY_WORKERS=8 python tests/drills/reward_storm.py   # other bounds: see guard.py

Hostile answers are towers of powers, factorials, expansions, deep nesting and numbers that outgrow memory. Crashes are
workers killed from outside at random moments, as the kernel does when memory is short. The bound is what the hanging
answers alone allow: their number, times the time limit, over the workers. Exits with 1 if an honest answer is scored
wrong or a hostile one rewarded, if it takes longer than twice the bound, if memory grows or a process is left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil

from reward_fns import compute_score, guard

MATH = "lighteval/MATH"
SHARE, THREADS = 0.05, 16  # of hostile answers; that ask for rewards
HOSTILE = (
    "\\boxed{{9^{{9^{{9^{{{n}}}}}}}}}",
    "The answer is 9**9**9**{n}",
    "\\boxed{{{n}00000!}}",
    "\\boxed{{2^{{9{n}99999999}}}}",
    "\\boxed{{(a+b+c+d+e+f)^{{4{n}}}}}",
    "\\boxed{{" + "(" * 300 + "{n}" + ")" * 300 + "}}",
)
HONEST = (
    ("{n}", "The answer is \\boxed{{{n}}}.", 1),
    ("{n}", "The answer is \\boxed{{{m}}}.", 0),
    ("{n}", "The answer is \\boxed{{\\lim_{{x \\to 0}} (x + {n})}}.", 1),
    ("{n}", "The answer is \\boxed{{\\lim_{{x \\to 0}} (x + {m})}}.", 0),
    ("\\frac{{{n}}}{{7}}", "\\boxed{{{n}/7}}", 1),
    ("{n}\\sqrt{{2}}", "\\boxed{{\\sqrt{{2}}\\cdot {n}}}", 1),
    ("{n}\\sqrt{{2}}", "\\boxed{{{m}\\sqrt{{2}}}}", 0),
    ("{n}", "So in all the answer is ${n}$.", 1),
    ("7,{n}9", "\\boxed{{{n}9,7}}", 1),
)


def answers(count: int):
    """(gold, text, 1 or 0 for right or wrong, None for hostile) in random order."""
    hostile = round(count * SHARE)
    made = [("5", HOSTILE[i % len(HOSTILE)].format(n=i % 9 + 1), None) for i in range(hostile)]
    for i in range(count - hostile):
        gold, text, right = HONEST[i % len(HONEST)]
        names = {"n": 100 + i, "m": 101 + i}
        made.append((gold.format(**names), text.format(**names), right))
    random.Random(1).shuffle(made)
    return made


def memory_mb() -> float:
    """Resident memory of this process and its children."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 2**20


def kill_now_and_then(every: float, done: threading.Event, killed: list[int]) -> None:
    while not done.wait(every):
        if workers := guard.pool().processes()[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid := random.choice(workers), signal.SIGKILL)
                killed.append(pid)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=2000)
    items = answers(parser.parse_args().answers)
    limit = guard.from_environment("GPG_VERIFY_TIMEOUT", 5)
    workers = guard.from_environment("GPG_VERIFY_WORKERS", 4)
    hostile = sum(right is None for _, _, right in items)
    bound = hostile * limit / workers
    print(
        f"{len(items)} answers, {hostile} hostile, {THREADS} threads, {workers:g} workers, {limit:g} s each, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    compute_score(MATH, "\\boxed{\\sum_{k=1}^{2} k}", "3")  # the pool is up
    done, killed = threading.Event(), []
    killer = threading.Thread(target=kill_now_and_then, args=(2.0, done, killed))
    killer.start()
    memory, start = [memory_mb()], time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        futures = [threads.submit(compute_score, MATH, text, gold) for gold, text, _ in items]
        while not all(future.done() for future in futures):
            time.sleep(0.5)
            memory.append(memory_mb())
    took = time.perf_counter() - start
    done.set()
    killer.join()
    results = [future.result() for future in futures]

    pids = guard.pool().processes()
    guard.close()
    left = list(filter(psutil.pid_exists, pids))
    wrong = [i for i, r in zip(items, results, strict=True) if i[2] is not None and (r["acc"] != i[2] or r["killed"])]
    paid = sum(r["score"] != 0 for item, r in zip(items, results, strict=True) if item[2] is None)
    third = max(1, len(memory) // 3)
    early, late = max(memory[:third]), max(memory[-third:])
    print(
        f"{took:.1f} s, {took / bound:.2f} of the bound; {len(wrong)} honest answers scored wrong; {paid} of {hostile} "
        f"hostile ones rewarded, {int(sum(r['killed'] for r in results))} killed and counted; {len(killed)} workers "
        f"killed from outside; {max(memory):.0f} MB of memory at most, {early:.0f} early, {late:.0f} late; {len(left)} "
        "processes left behind"
    )
    print(*(f"  wrong: {item}\n" for item in wrong), sep="", end="")
    return int(bool(wrong or paid or left) or took > 2 * bound or late > 1.5 * early + 100)


if __name__ == "__main__":
    sys.exit(main())
