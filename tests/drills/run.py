"""Failure drills: real tiny runs, each hurt in the middle of a step, and what is left of it.

    python tests/drills/run.py                 # all, about half an hour on 2 cores
    python tests/drills/run.py driver ctrl-c   # some, in their order
    python tests/drills/run.py --list

Each drill's run resumes the one before it, so what a failure leaves is used at once. The results go to runs/drills.json
and, as the table of docs/drills.md, to runs/drills.md; the exit code is 1 where a drill misses what it expects.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness import DrillRun, End, make_tiny
from rich.console import Console
from rich.table import Table

RUNS = Path(__file__).resolve().parents[2] / "runs"
SAVE_FREQ = 5
ENDS_WITHIN = 60  # seconds
GONE_WITHIN = 90  # seconds
STARTS_WITHIN = 900  # seconds; 100 on 2 cores that do nothing else
OVERRIDES = (f"trainer.save_freq={SAVE_FREQ}", "trainer.test_freq=-1")
COMES_TO_WAIT = 5  # seconds, several steps: a run that goes on comes to wait for a frozen process

console = Console()


@dataclass
class Row:
    """What a drill showed."""

    drill: str
    what: str
    code: int | None = None
    seconds: float = 0.0  # from the failure to the run's end
    last_words: list[str] = field(default_factory=list)
    lines: int = 0  # that the user sees from the failure on
    tail: list[str] = field(default_factory=list)
    saved: int = 0
    reached: int = 0
    lost: str = "nothing"
    gone_after: float | None = None  # seconds from the run's end; None where something stays
    at: dict[int, list[str]] = field(default_factory=dict)
    shared_memory: list[str] = field(default_factory=list)
    ray_megabytes: float = 0.0
    resumed: str = "not tried"
    misses: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Drill:
    """`hurt` returns the run that must end and its end; `says` is what that run's last lines must tell.

    Where `trains`, the run has saved and gone on when it is hurt; else it is hurt from its start on.
    """

    name: str
    what: str
    hurt: Callable[[DrillRun], tuple[DrillRun, End]]
    says: tuple[str, ...]
    codes: tuple[int, ...] = (1,)
    steps: int = 10_000
    loses: bool = True
    trains: bool = True


# ---- how a run is hurt


def ended(run: DrillRun) -> tuple[DrillRun, End]:
    return run, run.wait_for_end(ENDS_WITHIN + 60)


def kill(run: DrillRun, role: str) -> tuple[DrillRun, End]:
    run.note_shared_memory()
    run.failed()
    run.find(role).kill()
    return ended(run)


def while_scoring(role: str):
    def hurt(run: DrillRun) -> tuple[DrillRun, End]:
        with run.held(STARTS_WITHIN):
            return kill(run, role)

    return hurt


def at_its_start(role: str):
    def hurt(run: DrillRun) -> tuple[DrillRun, End]:
        def there() -> bool:
            return any(run.role(process) == role for process in run.processes())

        run.wait_until(there, role, STARTS_WITHIN)
        return kill(run, role)

    return hurt


def while_waited_for(role: str, frozen: str, after_scoring: bool):
    """A process is frozen and the run comes to wait for it: the kill is never between two calls."""

    def hurt(run: DrillRun) -> tuple[DrillRun, End]:
        if after_scoring:
            with run.held():
                run.find(frozen).suspend()
        else:
            run.find(frozen).suspend()
        time.sleep(COMES_TO_WAIT)
        return kill(run, role)

    return hurt


def send(number: signal.Signals, to_group: bool):
    def hurt(run: DrillRun) -> tuple[DrillRun, End]:
        with run.held():
            run.note_shared_memory()
            run.failed()
            (os.killpg if to_group else os.kill)(run.process.pid, number)
            return ended(run)

    return hurt


def terminate_all(run: DrillRun) -> tuple[DrillRun, End]:
    with run.held():
        run.note_shared_memory()
        run.failed()
        for process in run.processes():
            process.terminate()
        return ended(run)


def score_nothing(run: DrillRun) -> tuple[DrillRun, End]:
    run.note_shared_memory()
    run.failed()
    run.hold.with_suffix(".none").touch()
    return ended(run)


def start_a_second(run: DrillRun) -> tuple[DrillRun, End]:
    """The first goes on when the second has ended."""
    with run.held():
        second = run.again("second")
        second.failed()
        end = second.wait_for_end()
    run.wait_for_step(max(run.steps()) + 1)
    return second, end


def start_again_when_finished(run: DrillRun) -> tuple[DrillRun, End]:
    run.wait_for_end()
    second = run.again("second-finished")
    second.failed()
    return second, second.wait_for_end(STARTS_WITHIN)


RESUMES = "the same command goes on with step"
DRILLS = [
    Drill("driver", "`kill -9` of the driver", while_scoring("driver"), (), (-signal.SIGKILL,)),
    Drill(
        "actor",
        "`kill -9` of an actor worker, in an update",
        while_waited_for("actor worker", frozen="actor worker", after_scoring=True),
        ("actor worker 0 died", RESUMES),
    ),
    Drill(
        "actor-idle",
        "`kill -9` of an actor worker, while rewards are computed",
        while_scoring("actor worker"),
        ("actor worker 0 died", RESUMES),
    ),
    Drill(
        "server",
        "`kill -9` of the vLLM server, while it generates",
        while_waited_for("vLLM server", frozen="vLLM engine", after_scoring=False),
        ("rollout server 0 died", RESUMES),
    ),
    Drill(
        "server-sync",
        "`kill -9` of the vLLM server, while it takes weights",
        while_waited_for("vLLM server", frozen="vLLM engine", after_scoring=True),
        ("rollout server 0 died", RESUMES),
    ),
    Drill(
        "engine",
        "`kill -9` of vLLM's engine process, while it generates",
        while_waited_for("vLLM engine", frozen="vLLM engine", after_scoring=False),
        ("engine of the rollout server 0 died", RESUMES),
    ),
    Drill(
        "engine-sync",
        "`kill -9` of vLLM's engine process, while it takes weights",
        while_waited_for("vLLM engine", frozen="vLLM engine", after_scoring=True),
        ("engine of the rollout server 0 died", RESUMES),
    ),
    Drill(
        "reward",
        "`kill -9` of a reward worker, while it scores",
        while_scoring("reward worker"),
        ("reward worker 0 died", RESUMES),
    ),
    Drill(
        "no-reward",
        "a reward function that returns None",
        score_nothing,
        ("the reward function compute_score of ", "None is no number", "algorithm.gpg.drop_unscored=True", RESUMES),
    ),
    Drill(
        "agent-loop",
        "`kill -9` of an agent-loop worker",
        while_scoring("agent-loop worker"),
        ("agent-loop worker 0 died", RESUMES),
    ),
    Drill(
        "validation",
        "`kill -9` of a reward worker, in the validation before training",
        while_scoring("reward worker"),
        ("reward worker 0 died", RESUMES),
        trains=False,
    ),
    Drill(
        "start",
        "`kill -9` of the vLLM server, while it starts",
        at_its_start("vLLM server"),
        ("ActorDiedError", "vLLMHttpServer", RESUMES),
        trains=False,
    ),
    Drill("ctrl-c", "Ctrl-C", send(signal.SIGINT, to_group=True), ("Ctrl-C", RESUMES), (130,)),
    Drill("sigterm", "SIGTERM to the driver", send(signal.SIGTERM, to_group=False), ("SIGTERM", RESUMES), (143,)),
    Drill(
        "sigterm-all",
        "SIGTERM to every process (a job scheduler, at the time limit)",
        terminate_all,
        ("SIGTERM", RESUMES),
        (143,),
    ),
    Drill(
        "second-run",
        "a second run in the folder of one at work",
        start_a_second,
        ("another run saves there", "process"),
        loses=False,
    ),
    Drill(
        "finished",
        "the same command in the folder of a finished run",
        start_again_when_finished,
        (),
        (0,),
        steps=SAVE_FREQ + 1,
        loses=False,
    ),
]


# ---- what is left


def drilled(drill: Drill, run: DrillRun, before: list[tuple[Row, DrillRun]]) -> Row:
    """Runs a drill to its end; what the drills `before` left is what this run starts from."""
    row = Row(drill.name, drill.what)
    if drill.trains:
        run.wait_for_step(run.saved() + SAVE_FREQ + 1, STARTS_WITHIN)
        for one in before:
            judge_resume(*one, run)
        before.clear()
    hurt, end = drill.hurt(run)
    try:
        remains = hurt.remaining(last=GONE_WITHIN)
        left = list(map(hurt.role, hurt.processes()))
    finally:
        hurt.close()
    lines = hurt.after_failure()
    row.code, row.seconds = end.code, round(end.seconds, 1)
    row.lines, row.tail = len(lines), [line[:500] for line in lines[-15:]]
    words = [line.strip() for line in lines[-6:] if line.startswith(("gpg_verl: ", "  - "))]
    row.last_words = [word.replace(str(run.folder), "FOLDER") for word in words]
    row.saved = run.saved()
    row.reached = max([row.saved, *run.steps()])
    if drill.loses:
        row.lost = f"{row.reached - row.saved} done since the save, and the step at work"
    row.at, row.gone_after = remains.at, remains.gone_after
    row.shared_memory, row.ray_megabytes = remains.shared_memory, remains.ray_megabytes

    if row.code not in drill.codes:
        row.misses.append(f"exit code {row.code}, expected {' or '.join(map(str, drill.codes))}")
    if drill.loses and row.seconds > ENDS_WITHIN:
        row.misses.append(f"ended after {row.seconds:.0f} s, expected {ENDS_WITHIN} at most")
    if unsaid := [text for text in drill.says if text not in " ".join(row.last_words)]:
        row.misses.append(f"the last lines do not say {', '.join(map(repr, unsaid))}")
    if left:
        row.misses.append(f"left after {GONE_WITHIN} s: {', '.join(left)}")
    if row.shared_memory:
        row.misses.append(f"left in shared memory: {', '.join(row.shared_memory)}")
    if row.reached - row.saved > SAVE_FREQ:
        row.misses.append(f"{row.reached - row.saved} steps lost, expected {SAVE_FREQ} at most")
    return row


def judge_resume(row: Row, before: DrillRun, after: DrillRun) -> None:
    """Whether `after` went on where `before` had saved, with the same prompts."""
    first = min(after.steps())
    again = [step for step in range(first, row.reached + 1) if before.prompts(step) and after.prompts(step)]
    row.resumed = f"step {first}"
    if again:
        row.resumed += f", same prompts in {', '.join(map(str, again))}"
    if first != row.saved + 1:
        row.misses.append(f"resumed at step {first}, expected {row.saved + 1}")
    if differ := [step for step in again if before.prompts(step) != after.prompts(step)]:
        row.misses.append(f"other prompts after resume in steps {differ}")


# ---- the report


HEADINGS = ("drill", "what the user sees", "exit, after", "lost", "left running", "resume")


def cells(row: Row) -> tuple[str, ...]:
    said = " / ".join(row.last_words)
    if row.gone_after is None:
        left = "some to the last look"
    else:
        left = "nothing" if row.gone_after < 1 else f"nothing after {row.gone_after:.0f} s"
    return (
        row.what,
        f"{f'`{said}`' if said else 'no last words'} ({row.lines} lines in all)",
        f"{row.code}, {row.seconds:.0f} s",
        row.lost,
        left + ("" if not row.misses else f"; MISSED: {'; '.join(row.misses)}"),
        row.resumed,
    )


def report(rows: list[Row], name: str = "drills") -> None:
    RUNS.mkdir(exist_ok=True)
    (RUNS / f"{name}.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    table = [HEADINGS, ("---",) * len(HEADINGS), *map(cells, rows)]
    (RUNS / f"{name}.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in table))


def show(rows: list[Row]) -> None:
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(*cells(row), style="red" if row.misses else None)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="drills to run; all where none is given")
    parser.add_argument("--list", action="store_true", help="print the drills' names and end")
    parser.add_argument("--keep", type=Path, help="keep the runs' logs and checkpoints in this folder")
    arguments = parser.parse_args()
    by_name = {drill.name: drill for drill in DRILLS}
    if arguments.list:
        for drill in DRILLS:
            print(f"{drill.name:12} {drill.what}")
        return 0
    if unknown := set(arguments.names) - by_name.keys():
        parser.error(f"no drill {', '.join(sorted(unknown))}; there are {', '.join(by_name)}")

    chosen = [by_name[name] for name in arguments.names] or DRILLS
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="drills-"))
    rows: list[Row] = []
    before: list[tuple[Row, DrillRun]] = []
    try:
        tiny_folder = make_tiny(folder / "tiny")
        for number, drill in enumerate(chosen, 1):
            console.print(f"{number} of {len(chosen)}, {drill.name}: {drill.what}")
            steps = f"trainer.total_training_steps={drill.steps + (rows[-1].saved if rows else 0)}"
            validates = f"trainer.val_before_train={not drill.trains}"
            run = DrillRun(folder / "run", tiny_folder, drill.name, *OVERRIDES, steps, validates)
            try:
                row = drilled(drill, run, before)
            finally:
                run.close()
            rows.append(row)
            before.append((row, run))
            report(rows)
            console.print(f"  exit {row.code} after {row.seconds:.0f} s, {row.lines} lines, misses: {row.misses}")
            for line in row.last_words:
                console.print(f"  {line}", markup=False)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    show(rows)
    return int(any(row.misses for row in rows))


if __name__ == "__main__":
    sys.exit(main())
