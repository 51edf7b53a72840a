"""Failure drills: real tiny runs, each hurt in the middle of a step, and what is left of it.

    python tests/drills/run.py                 # all, about 40 minutes on 2 cores; `disk` mounts a small one, as root
    python tests/drills/run.py driver ctrl-c   # some, in their order
    python tests/drills/run.py --list

Each drill's run resumes the one before it, so what a failure leaves is used at once; `disk` and `preempted` have runs
of their own. The results go, as the table of docs/drills.md, to runs/drills.md; the exit code is 1 where a drill misses
what it expects.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from harness import DrillRun, End, make_tiny

REPORT = Path(__file__).resolve().parents[2] / "runs/drills.md"
SAVE_FREQ = 5
ENDS_WITHIN = 60  # seconds
GONE_WITHIN = 90  # seconds
STARTS_WITHIN = 900  # seconds; 100 on 2 cores that do nothing else
OVERRIDES = (f"trainer.save_freq={SAVE_FREQ}", "trainer.test_freq=-1")
COMES_TO_WAIT = 5  # seconds, several steps: a run that goes on comes to wait for a frozen process


@dataclass
class Row:
    """What a drill showed."""

    drill: str
    what: str
    code: int | None = None
    seconds: float = 0.0  # from the failure to the run's end
    last_words: list[str] = field(default_factory=list)
    lines: int = 0  # that the user sees from the failure on
    saved: int = 0
    reached: int = 0
    lost: str = "nothing"
    gone_after: float | None = None  # seconds from the run's end; None where something stays
    resumed: str = "not tried"
    misses: list[str] = field(default_factory=list)

    def expect(self, met: bool, otherwise: str) -> None:
        self.misses += [] if met else [otherwise]


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
    run.failed()
    run.find(role).kill()
    return ended(run)


def while_scoring(run: DrillRun, role: str) -> tuple[DrillRun, End]:
    with run.held(STARTS_WITHIN):
        return kill(run, role)


def at_its_start(run: DrillRun, role: str) -> tuple[DrillRun, End]:
    run.wait_until(lambda: role in map(run.role, run.processes()), role, STARTS_WITHIN)
    return kill(run, role)


def while_waited_for(run: DrillRun, role: str, frozen: str, after_scoring: bool) -> tuple[DrillRun, End]:
    """A process is frozen and the run comes to wait for it: the kill is never between two calls."""
    with run.held() if after_scoring else contextlib.nullcontext():
        run.find(frozen).suspend()
    time.sleep(COMES_TO_WAIT)
    return kill(run, role)


def send(run: DrillRun, number: signal.Signals, to: str) -> tuple[DrillRun, End]:
    with run.held():
        run.failed()
        if to == "group":
            os.killpg(run.process.pid, number)
        else:
            for process in run.processes() if to == "all" else [run.process]:
                process.send_signal(number)
        return ended(run)


def score_nothing(run: DrillRun) -> tuple[DrillRun, End]:
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
SERVER, ENGINE = "rollout server 0", "engine of the rollout server 0"
ACTOR = {"role": "actor worker", "frozen": "actor worker"}
HTTP, CORE = {"role": "vLLM server", "frozen": "vLLM engine"}, {"role": "vLLM engine", "frozen": "vLLM engine"}
KILLS = (  # name, in words, who dies and who was frozen before, who is said to be dead
    ("actor", "an actor worker, in an update", {**ACTOR, "after_scoring": True}, "actor worker 0"),
    ("server", "the vLLM server, while it generates", {**HTTP, "after_scoring": False}, SERVER),
    ("server-sync", "it, while it takes weights", {**HTTP, "after_scoring": True}, SERVER),
    ("engine", "the engine, while it generates", {**CORE, "after_scoring": False}, ENGINE),
    ("engine-sync", "it, while it takes weights", {**CORE, "after_scoring": True}, ENGINE),
)
NO_REWARD = ("the reward function compute_score of ", "None is no number", "algorithm.gpg.drop_unscored=True", RESUMES)
DIED = ("reward worker 0 died", RESUMES)
TERMINATED = (("SIGTERM", RESUMES), (143,))
SCORER = partial(while_scoring, role="reward worker")
STARTING = partial(at_its_start, role="vLLM server")
DRILLS = [
    Drill("driver", "`kill -9` of the driver", partial(while_scoring, role="driver"), (), (-signal.SIGKILL,)),
    *(
        Drill(name, f"`kill -9` of {words}", partial(while_waited_for, **whom), (f"{dead} died", RESUMES))
        for name, words, whom, dead in KILLS
    ),
    Drill("reward", "`kill -9` of a reward worker, while it scores", SCORER, DIED),
    Drill("no-reward", "a reward function that returns None", score_nothing, NO_REWARD),
    Drill("validation", "`kill -9` in the first validation", SCORER, DIED, trains=False),
    Drill("start", "`kill -9` of a server that starts", STARTING, ("vLLMHttpServer",), trains=False),
    Drill("ctrl-c", "Ctrl-C", partial(send, number=signal.SIGINT, to="group"), ("Ctrl-C", RESUMES), (130,)),
    Drill("sigterm", "SIGTERM to the driver", partial(send, number=signal.SIGTERM, to="driver"), *TERMINATED),
    Drill("sigterm-all", "SIGTERM to every process", partial(send, number=signal.SIGTERM, to="all"), *TERMINATED),
    Drill("second-run", "a second run in the folder", start_a_second, ("another run saves there",), loses=False),
    Drill("finished", "the same command again", start_again_when_finished, (), (0,), SAVE_FREQ + 1, loses=False),
]


# ---- what is left


def noted(row: Row, run: DrillRun, end: End, says: tuple[str, ...], codes: tuple[int, ...]) -> Row:
    """What a run's end showed, and where it is not what is expected; the run is closed."""
    try:
        remains = run.remaining(GONE_WITHIN)
    finally:
        run.close()
    lines = run.after_failure()
    row.code, row.seconds, row.lines = end.code, round(end.seconds, 1), len(lines)
    words = [line.strip() for line in lines[-6:] if line.startswith(("gpg_verl: ", "  - "))]
    row.last_words = [word.replace(str(run.folder), "FOLDER") for word in words]
    row.saved, row.gone_after = run.saved(), remains.gone_after
    row.reached = max([row.saved, *run.steps()])
    unsaid = [text for text in says if text not in " ".join(row.last_words)]
    row.expect(row.code in codes, f"exit code {row.code}, expected {' or '.join(map(str, codes))}")
    row.expect(not unsaid, f"the last lines do not say {', '.join(map(repr, unsaid))}")
    row.expect(not remains.left, f"left after {GONE_WITHIN} s: {', '.join(remains.left)}")
    row.expect(not remains.shared_memory, f"left in shared memory: {', '.join(remains.shared_memory)}")
    return row


def drilled(drill: Drill, run: DrillRun, before: list[tuple[Row, DrillRun]]) -> Row:
    """Runs a drill to its end; what the drills `before` left is what this run starts from."""
    if drill.trains:
        run.wait_for_step(run.saved() + SAVE_FREQ + 1, STARTS_WITHIN)
        for one in before:
            judge_resume(*one, run)
        before.clear()
    hurt, end = drill.hurt(run)
    row = noted(Row(drill.name, drill.what), hurt, end, drill.says, drill.codes)
    if drill.loses:
        row.lost = f"{row.reached - row.saved} done since the save, and the step at work"
        row.expect(row.seconds <= ENDS_WITHIN, f"ended after {row.seconds:.0f} s, expected {ENDS_WITHIN} at most")
    lost = row.reached - row.saved
    row.expect(lost <= SAVE_FREQ, f"{lost} steps lost, expected {SAVE_FREQ} at most")
    return row


def judge_resume(row: Row, before: DrillRun, after: DrillRun) -> None:
    """Whether `after` went on where `before` had saved, with the same prompts."""
    first = min(after.steps())
    again = [step for step in range(first, row.reached + 1) if before.prompts(step) and after.prompts(step)]
    same = [step for step in again if before.prompts(step) == after.prompts(step)]
    row.resumed = f"step {first}" + (f", same prompts in {', '.join(map(str, same))}" if same else "")
    row.expect(first == row.saved + 1, f"resumed at step {first}, expected {row.saved + 1}")
    row.expect(same == again, f"of the steps {again} other prompts after resume in all but {same}")


# ---- a disk that fills up


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system with room for two checkpoints of the tiny model (a million bytes each) and no third; as root."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2600000", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill_when(there: Path, ballast: Path) -> None:
    """What another program writes takes all the room, as soon as `there` is made."""

    def fill() -> None:
        while not there.exists():
            pass
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size):
                        pass

    threading.Thread(target=fill, daemon=True).start()


def disk(folder: Path, tiny_folder: Path) -> list[Row]:
    checkpoints = folder / "disk/checkpoints"
    overrides = ("trainer.test_freq=-1", "trainer.val_before_train=False", "trainer.save_freq=2")
    with small_disk(checkpoints):
        run = DrillRun(folder / "disk", tiny_folder, "filled", *overrides, "trainer.total_training_steps=100")
        run.wait_for_step(2, STARTS_WITHIN)
        run.failed()
        fill_when(checkpoints / "global_step_4", checkpoints / "ballast")
        row = Row("disk-full", "disk full in the middle of a save (another program filled it)")
        says = ("step 4 could not be saved", "as on a full disk", "Step 2 is still complete", "with step 3")
        filled = noted(row, run, run.wait_for_end(STARTS_WITHIN), says, (1,))
        left = sorted(path.name for path in checkpoints.glob("global_step_*"))
        filled.expect((left, run.saved()) == (["global_step_2"], 2), f"left are {left}, the tracker: {run.saved()}")
        (checkpoints / "ballast").unlink()

        run = run.again("small")
        run.wait_for_step(4, STARTS_WITHIN)
        run.failed()
        says = ("step 6 could not be saved", "too little room", "Step 4 is still complete", "with step 5")
        small = noted(Row("disk-small", "no room for the next save"), run, run.wait_for_end(STARTS_WITHIN), says, (1,))
        filled.resumed = f"step {min(run.steps())}, once there was room again"
        filled.expect(min(run.steps()) == 3, f"resumed at step {min(run.steps())}, expected 3")
    return [filled, small]


# ---- a preemption, and what the run that goes on computes

TIMES = ("actor/perf/", "timing", "perf/", "gpg/driver_seconds", "gpg/check_seconds")


def compare(undisturbed: DrillRun, run: DrillRun, steps: Iterable[int], row: Row) -> int:
    """Notes in the row what differs in these steps but for times; how many metrics were compared."""
    compared = 0
    for step in steps:
        a, b = undisturbed.steps()[step], run.steps()[step]
        compared += len(a)
        differ = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k) and not k.startswith(TIMES)]
        row.expect(not differ, f"{run.name}, step {step}: other {', '.join(differ)}")
        row.expect(undisturbed.texts(step) == run.texts(step), f"{run.name}, step {step}: other prompts or responses")
    return compared


def preempted(folder: Path, tiny_folder: Path) -> list[Row]:
    """Ten steps, preempted in the middle of three of them, against ten that are not; two checkpoints are kept."""
    overrides = (
        "trainer.total_training_steps=10",
        "trainer.save_freq=3",
        "trainer.max_actor_ckpt_to_keep=2",
        "trainer.test_freq=-1",
        "trainer.val_before_train=False",
        "actor_rollout_ref.rollout.full_determinism=True",
    )
    undisturbed = DrillRun(folder / "preempted-a", tiny_folder, "undisturbed", *overrides)
    if undisturbed.wait_for_end(STARTS_WITHIN).code:
        raise RuntimeError("\n".join(undisturbed.lines()[-40:]))
    undisturbed.close()

    row = Row("preempted", "SIGUSR1 to the driver in the middle of a step, three times in ten steps")
    run, done, compared = DrillRun(folder / "preempted-b", tiny_folder, "part-0", *overrides), 0, 0
    for part in range(4):
        if part < 3:
            run.wait_for_step(done + 1, STARTS_WITHIN)
            with run.held():
                run.failed()
                run.process.send_signal(signal.SIGUSR1)
        noted(row, run, run.wait_for_end(STARTS_WITHIN), (), (75 if part < 3 else 0,))
        steps = sorted(run.steps())
        whole = bool(steps) and steps == list(range(done + 1, steps[-1] + 1)) and run.saved() == steps[-1]
        kept = len(list((run.folder / "checkpoints").glob("global_step_*")))
        row.expect(kept == min(part + 1, 2), f"{run.name}: {kept} checkpoints are kept")
        row.expect(whole, f"{run.name}: steps {steps} after {done}, saved {run.saved()}")
        compared += compare(undisturbed, run, steps, row)
        done = max(steps, default=done)
        if part < 3:
            run = run.again(f"part-{part + 1}")
    same = f"each step once, prompts, responses and {compared} metrics as undisturbed, equal to the bit"
    row.resumed = "see misses" if row.misses else same
    return [row]


OF_THEIR_OWN = {"disk": disk, "preempted": preempted}


# ---- the report

HEADINGS = ("drill", "what the user sees", "exit, after", "lost", "left running", "resume")


def cells(row: Row) -> tuple[str, ...]:
    said = " / ".join(row.last_words)
    left = "some to the last look" if row.gone_after is None else f"nothing after {row.gone_after:.0f} s"
    return (
        row.what,
        f"{f'`{said}`' if said else 'no last words'} ({row.lines} lines in all)",
        f"{row.code}, {row.seconds:.0f} s",
        row.lost,
        left + ("" if not row.misses else f"; MISSED: {'; '.join(row.misses)}"),
        row.resumed,
    )


def in_a_row(chosen: list[Drill], folder: Path, tiny_folder: Path) -> Iterator[Row]:
    """The drills in one folder, each on what the one before it left."""
    before, saved = [], 0
    for drill in chosen:
        own = f"trainer.total_training_steps={drill.steps + saved}", f"trainer.val_before_train={not drill.trains}"
        run = DrillRun(folder / "run", tiny_folder, drill.name, *OVERRIDES, *own)
        try:
            row = drilled(drill, run, before)
        finally:
            run.close()
        saved = row.saved
        before.append((row, run))
        yield row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="drills to run; all where none is given")
    parser.add_argument("--list", action="store_true", help="print the drills' names and end")
    parser.add_argument("--keep", type=Path, help="keep the runs' logs and checkpoints in this folder")
    arguments = parser.parse_args()
    by_name = {drill.name: drill for drill in DRILLS}
    every = [*by_name, *OF_THEIR_OWN]
    if arguments.list:
        print(*(f"{name:12} {by_name[name].what if name in by_name else ''}" for name in every), sep="\n")
        return 0
    if unknown := sorted({*arguments.names} - {*every}):
        parser.error(f"no drill {', '.join(unknown)}; there are {', '.join(every)}")
    names = arguments.names or every
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="drills-"))
    rows: list[Row] = []
    REPORT.parent.mkdir(exist_ok=True)
    try:
        tiny_folder = make_tiny(folder / "tiny")
        chosen = [by_name[name] for name in names if name in by_name]
        own = (row for name in names if name in OF_THEIR_OWN for row in OF_THEIR_OWN[name](folder, tiny_folder))
        for row in itertools.chain(in_a_row(chosen, folder, tiny_folder), own):
            rows.append(row)
            table = [HEADINGS, ("---",) * len(HEADINGS), *map(cells, rows)]
            REPORT.write_text("".join(f"| {' | '.join(line)} |\n" for line in table))
            print(f"{row.drill}: exit {row.code} after {row.seconds:.0f} s, misses: {row.misses}", flush=True)
            print(*(f"  {line}\n" for line in row.last_words), sep="", end="", flush=True)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(REPORT)
    return int(any(row.misses for row in rows))


if __name__ == "__main__":
    sys.exit(main())
