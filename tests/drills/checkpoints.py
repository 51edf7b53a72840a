"""Failure drills of what is saved: a disk that fills up, files that are cut, and what a resumed run computes.

    python tests/drills/checkpoints.py                  # all, about 15 minutes on 2 cores; mounts a small disk, as root
    python tests/drills/checkpoints.py same-metrics     # or disk, cut, preempted

The results go to runs/drills-checkpoints.json and, as rows of docs/drills.md, to runs/drills-checkpoints.md; the exit
code is 1 where a drill misses what it expects.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness import DrillRun, make_tiny
from run import GONE_WITHIN, Row, console, report, show

from gpg_verl.guards.checkpoints import TRACKER

DISK = 2_600_000  # bytes: two checkpoints of the tiny model, with a million each, and no third
STARTS_WITHIN = 400  # seconds
TRAINING = ("trainer.test_freq=-1", "trainer.val_before_train=False", "trainer.save_freq=2")


def tracked(run: DrillRun) -> int:
    """The step that the tracker names, 0 where it names none."""
    with contextlib.suppress(ValueError):
        return run.saved()
    return 0


def judged(run: DrillRun, row: Row, *says: str) -> Row:
    """Waits for the end of a run that has to end with exit code 1 and these words."""
    try:
        end = run.wait_for_end(STARTS_WITHIN)
        remains = run.remaining(last=GONE_WITHIN)
    finally:
        run.close()
    lines = run.after_failure()
    row.code, row.seconds, row.lines, row.tail = end.code, round(end.seconds, 1), len(lines), lines[-15:]
    row.last_words = [line for line in lines[-6:] if line.startswith(("gpg_verl: ", "  - "))]
    row.saved, row.gone_after, row.at = tracked(run), remains.gone_after, remains.at
    row.reached = max([row.saved, *run.steps()])
    if row.code != 1:
        row.misses.append(f"exit code {row.code}, expected 1")
    said = " ".join(row.last_words)
    row.misses += [f"the last lines do not say {text!r}" for text in says if text not in said]
    if remains.gone_after is None:
        row.misses.append("processes left")
    console.print(f"  {row.drill}: exit {row.code}, misses: {row.misses}")
    for line in row.last_words:
        console.print(f"  {line}", markup=False)
    return row


# ---- a disk that fills up


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill_when(there: Path, ballast: Path) -> threading.Thread:
    """What another program writes takes all the room, as soon as `there` is made."""

    def fill() -> None:
        while not there.exists():
            pass
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size):
                        pass

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    return thread


def disk(folder: Path, tiny_folder: Path) -> list[Row]:
    checkpoints = folder / "disk/checkpoints"
    with small_disk(checkpoints):
        run = DrillRun(folder / "disk", tiny_folder, "filled", *TRAINING, "trainer.total_training_steps=100")
        run.wait_for_step(2, STARTS_WITHIN)
        run.failed()
        fill_when(checkpoints / "global_step_4", checkpoints / "ballast")
        row = Row("disk-full", "disk full in the middle of a save (another program filled it)")
        filled = judged(
            run, row, "step 4 could not be saved", "as on a full disk", "Step 2 is still complete", "with step 3"
        )
        left = sorted(path.name for path in checkpoints.glob("global_step_*"))
        if left != ["global_step_2"] or run.saved() != 2:
            filled.misses.append(f"left are {left}, the tracker names {run.saved()}")
        (checkpoints / "ballast").unlink()

        run = run.again("small")
        run.wait_for_step(4, STARTS_WITHIN)
        run.failed()
        row = Row("disk-small", "no room for the next save")
        small = judged(
            run, row, "step 6 could not be saved", "too little room", "Step 4 is still complete", "with step 5"
        )
        filled.resumed = f"step {min(run.steps())}, once there was room again"
        if min(run.steps()) != 3:
            filled.misses.append(f"resumed at step {min(run.steps())}, expected 3")

        shutil.copytree(checkpoints, folder / "cut/checkpoints")
    return [filled, small]


# ---- cut files


def cut_in_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def cut(folder: Path, tiny_folder: Path) -> list[Row]:
    """Steps 2 and 4 are saved, and what step 4 needs is cut."""
    checkpoints = folder / "cut/checkpoints"
    training = (*TRAINING, "trainer.total_training_steps=4")
    if not checkpoints.exists():
        run = DrillRun(folder / "cut", tiny_folder, "saves", *training)
        if run.wait_for_end(STARTS_WITHIN).code:
            raise RuntimeError("\n".join(run.lines()[-40:]))
        run.close()
    shutil.copytree(checkpoints, folder / "whole")
    rows = []
    for name, what, harm, says in (
        ("model", "a model shard cut in half", cut_in_half, "is cut off or damaged"),
        ("data", "the data loader's state cut in half", cut_in_half, "is cut off or damaged"),
        ("gone", "an optimizer shard lost", Path.unlink, "is missing"),
        ("tracker", "an empty tracker", lambda file: file.write_text(""), "it was cut off while it was written"),
    ):
        file = {
            "model": "global_step_4/actor/model_world_size_1_rank_0.pt",
            "data": "global_step_4/data.pt",
            "gone": "global_step_4/actor/optim_world_size_1_rank_0.pt",
            "tracker": TRACKER,
        }[name]
        harm(checkpoints / file)
        run = DrillRun(folder / "cut", tiny_folder, name, *training)
        rows.append(judged(run, Row(f"cut-{name}", what), Path(file).name, says, "trainer.resume_mode=resume_path"))
        if "Started a local Ray instance" in run.log:
            rows[-1].misses.append("Ray was started")
        shutil.copy(folder / "whole" / file, checkpoints / file)

    # The fix that the first message names, as it stands there, over the step that was cut.
    cut_in_half(checkpoints / "global_step_4/actor/model_world_size_1_rank_0.pt")
    said = " ".join(rows[0].last_words)
    fix = re.findall(r"(trainer\.resume_mode=resume_path) (trainer\.resume_from_path=\S+?);", said)
    run = DrillRun(folder / "cut", tiny_folder, "fix", *training, *fix[0])
    code = run.wait_for_end(STARTS_WITHIN).code
    run.close()
    rows[0].resumed = f"step {min(run.steps())} by the fix that is named; step {run.saved()} saved again"
    if code or sorted(run.steps()) != [3, 4] or run.saved() != 4:
        rows[0].misses.append(f"the fix ended with {code} after steps {sorted(run.steps())}")
    return rows


# ---- what a resumed run computes

TIMES = ("actor/perf/", "timing", "perf/", "gpg/driver_seconds", "gpg/saved_seconds", "gpg/check_seconds")
# With β_th: how many prompts the rollout had ahead of those that the step used up, which are the same.
AHEAD = (
    "gpg/prompts_generated",
    "gpg/prompts_refilled",
    "gpg/prompts_handed_back",
    "gpg/surplus_valid",
    "gpg/data_passes",
)


def differences(first: dict, second: dict) -> dict[str, float]:
    """The relative difference of each metric that is not the same number in both, without those that are times."""
    found = {}
    for key in sorted(first.keys() | second.keys()):
        if key.startswith((*TIMES, *AHEAD)):
            continue
        a, b = first.get(key), second.get(key)
        if a != b:
            found[key] = float("inf") if a is None or b is None else abs(a - b) / max(abs(a), abs(b))
    return found


def texts(run: DrillRun, step: int) -> list[tuple[str, str]]:
    """Prompts and responses of a step; veRL writes them by uid, which is new in each run."""
    lines = (run.folder / f"rollouts-{run.name}/{step}.jsonl").read_text().splitlines()
    return sorted((row["input"], row["output"]) for row in map(json.loads, lines))


def compare(undisturbed: DrillRun, run: DrillRun, steps: Iterable[int], row: Row) -> int:
    """Notes in the row what differs in these steps; how many metrics were compared."""
    compared = 0
    for step in steps:
        a, b = undisturbed.steps()[step], run.steps()[step]
        compared += len(a)
        if differ := differences(a, b):
            row.misses.append(f"{run.name}, step {step}: {differ}")
        if texts(undisturbed, step) != texts(run, step):
            row.misses.append(f"{run.name}, step {step}: other prompts or responses")
    return compared


def same_metrics(folder: Path, tiny_folder: Path) -> list[Row]:
    rows = []
    refills = ("+algorithm.gpg.beta_th=0.8", "actor_rollout_ref.rollout.n=2")  # half of such groups are mixed
    for name, more in (("plain", ()), ("beta", refills)):
        overrides = (
            "trainer.total_training_steps=6",
            "trainer.save_freq=3",
            "trainer.test_freq=-1",
            "trainer.val_before_train=False",
            "actor_rollout_ref.rollout.full_determinism=True",
            "actor_rollout_ref.actor.ppo_mini_batch_size=2",
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
            *more,
        )
        undisturbed = DrillRun(folder / f"{name}-a", tiny_folder, "undisturbed", *overrides)
        if undisturbed.wait_for_end(STARTS_WITHIN).code:
            raise RuntimeError("\n".join(undisturbed.lines()[-40:]))
        undisturbed.close()
        killed = DrillRun(folder / f"{name}-b", tiny_folder, "killed", *overrides)
        killed.wait_for_step(4, STARTS_WITHIN)
        with killed.held():
            killed.failed()
            killed.find("driver").kill()
            killed.wait_for_end()
        killed.close()
        resumed = killed.again("resumed")
        end = resumed.wait_for_end(STARTS_WITHIN)
        resumed.close()

        row = Row(f"same-metrics-{name}", f"`kill -9` and resume under full_determinism {' '.join(more)}".strip())
        row.code, row.saved, row.reached, row.gone_after = end.code, resumed.saved(), 6, 0.0
        if sorted(resumed.steps()) != [4, 5, 6]:
            row.misses.append(f"resumed steps {sorted(resumed.steps())}, expected 4 to 6")
        compared = 0
        for run, steps in ((killed, range(1, 5)), (resumed, range(4, 7))):
            compared += compare(undisturbed, run, steps, row)
        if not any(m["gpg/valid_share"] > 0 for m in undisturbed.steps().values()):
            row.misses.append("no group was mixed")
        row.resumed = f"prompts, responses and {compared} metrics of 7 steps compared, equal to the bit"
        if row.misses:
            row.resumed = "see misses"
        console.print(f"  {row.drill}: {row.resumed} {row.misses}", markup=False)
        rows.append(row)
    return rows


def preempted(folder: Path, tiny_folder: Path) -> list[Row]:
    """Ten steps, preempted in the middle of three of them, against ten that are not."""
    overrides = (
        "trainer.total_training_steps=10",
        "trainer.save_freq=100",
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
        end = run.wait_for_end(STARTS_WITHIN)
        remains = run.remaining(last=GONE_WITHIN)
        run.close()
        steps = sorted(run.steps())
        row.code, row.seconds, row.gone_after = end.code, round(end.seconds, 1), remains.gone_after
        row.last_words = [line for line in run.lines()[-6:] if line.startswith("gpg_verl: ")]
        if end.code != (75 if part < 3 else 0):
            row.misses.append(f"{run.name}: exit code {end.code}: {run.lines()[-3:]}")
        if not steps or steps != list(range(done + 1, steps[-1] + 1)) or run.saved() != steps[-1]:
            row.misses.append(f"{run.name}: steps {steps} after {done}, saved {run.saved()}")
        compared += compare(undisturbed, run, steps, row)
        done = max(steps, default=done)
        if part < 3:
            run = run.again(f"part-{part + 1}")
    row.saved = row.reached = done
    row.resumed = f"each step once, prompts, responses and {compared} metrics as undisturbed, equal to the bit"
    if row.misses:
        row.resumed = "see misses"
    console.print(f"  {row.drill}: {row.resumed} {row.misses}", markup=False)
    return [row]


DRILLS = {"disk": disk, "cut": cut, "same-metrics": same_metrics, "preempted": preempted}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(DRILLS)}; all where none is given")
    parser.add_argument("--keep", type=Path, help="keep the runs' logs and checkpoints in this folder")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(DRILLS):
        parser.error(f"no drill {', '.join(sorted(unknown))}; there are {', '.join(DRILLS)}")
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="drills-"))
    rows: list[Row] = []
    try:
        tiny_folder = make_tiny(folder / "tiny")
        for name, drill in DRILLS.items():
            if not arguments.names or name in arguments.names:
                console.print(name)
                rows += drill(folder, tiny_folder)
                report(rows, "drills-checkpoints")
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    show(rows)
    return int(any(row.misses for row in rows))


if __name__ == "__main__":
    sys.exit(main())
