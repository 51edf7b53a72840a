"""Run a training command with a progress bar: its output goes to a log file, its metrics to the bar."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import fmean

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from gpg_verl.report import ReportError
from gpg_verl.report.runs import ALPHA, REWARD, STEP_SECONDS, TEST_SECONDS, VALID_SHARE, held_out_means, step_of

# What a start is waiting for, from each of these lines of veRL 0.9.1 and Ray on.
STAGES = {
    "": "starting: settings, model and data are looked at",
    "ray init kwargs:": "starting: Ray",
    "Started a local Ray instance": "starting: the trainer",
    "Connected to Ray cluster": "starting: the trainer",
    "dataloader initialized": "starting: the model in the trainer",
    "model engine initialized": "starting: the rollout server",
    "ready to fit": "first validation",
    "Training Progress:": "first step",
}
POLL_SECONDS = 0.2
PLAIN_HEARTBEAT_SECONDS = 30  # how often a log without a terminal says that the start is still going on
STRAGGLER_SECONDS = 5  # what a finished command's left-over processes get to end by themselves
ERROR_LINES = 30
LOG_TAIL_BYTES = 1_000_000


def watch(run: Path, log: Path, command: list[str], steps: int | None = None, grace: float = 30.0) -> int:
    """Run `command` in its own process group, show its progress, return its exit code (128 + n for signal n).

    SIGINT, SIGTERM and SIGHUP are passed on to the whole group, which is killed if the command has not ended
    `grace` seconds later. Nothing of the group is left running on return.
    """
    # The command inherits this variable, so its veRL writes there.
    metrics = MetricsTail(Path(os.environ.get("VERL_FILE_LOGGER_PATH") or run / "metrics.jsonl"))
    progress = Progress(steps)
    with received_signals() as signals:
        child = start(command, log)
        forwarded, kill_at = 0, float("inf")
        try:
            with display(steps) as show:
                while True:
                    ended = child.poll() is not None  # before reading, so that the last lines are read
                    for step, values in metrics.new_lines():
                        show(progress.describe(step, values), step, bool(held_out_means(values)))
                    if ended:
                        break
                    if not progress.begun:
                        show(stage(log), None, False)
                    for number in signals[forwarded:]:
                        forwarded += 1
                        kill_at = min(kill_at, time.monotonic() + grace)
                        send(child, number)
                    if time.monotonic() > kill_at:
                        send(child, signal.SIGKILL)
                    time.sleep(POLL_SECONDS)
        finally:
            end_group(child, grace)
    report_end(child.returncode, signals, progress.begun, metrics.path, log)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


class MetricsTail:
    """New complete lines of a metrics file, once veRL's file logger has truncated that of an earlier run."""

    def __init__(self, path: Path):
        self.path, self.shown = path, 0
        self.seen = self._state()

    def _state(self) -> tuple[int, int, int] | None:
        stat = self.path.stat() if self.path.exists() else None
        return stat and (stat.st_ino, stat.st_size, stat.st_mtime_ns)

    def new_lines(self) -> list[tuple[int, dict[str, float]]]:
        """(step, metrics) of each; a line that is none of veRL's is told on stderr, as it may not end a run."""
        now = self._state()
        if now in (None, self.seen):
            return []
        self.seen = now
        *complete, _ = self.path.read_bytes().split(b"\n")
        if len(complete) < self.shown:  # truncated again: the command started over
            self.shown = 0
        new, self.shown = complete[self.shown :], len(complete)
        parsed = []
        for line in new:
            try:
                parsed.append(step_of(json.loads(line)))
            except (ValueError, TypeError, KeyError, AttributeError):
                print(f"{self.path}: no line of veRL's file logger: {line[:60]!r}", file=sys.stderr)
        return parsed


def stage(log: Path) -> str:
    """Which part of its start a command is in, by its log."""
    text = log.read_text(errors="replace")
    return [name for line, name in STAGES.items() if line in text][-1]


class Progress:
    """One line of text per step, with the time left."""

    def __init__(self, total: int | None):
        self.total = total
        self.seconds: list[float] = []  # of every step so far, validation included
        self.begun = False

    def describe(self, step: int, values: dict[str, float]) -> str:
        self.begun = True
        parts = [f"step {step}/{self.total}" if self.total else f"step {step}"]
        shown = {"reward": REWARD, "valid": VALID_SHARE, "α": ALPHA}
        parts += [f"{label} {values[name]:.2f}" for label, name in shown.items() if name in values]
        if STEP_SECONDS in values:
            self.seconds.append(values[STEP_SECONDS] + values.get(TEST_SECONDS, 0.0))
            parts.append(f"{values[STEP_SECONDS]:.1f} s/step")
            if self.total:
                left = max(0, self.total - step) * fmean(self.seconds)
                parts.append(f"{timedelta(seconds=round(left))} left")
        held_out = [(source, mean) for source, measure, _, mean in held_out_means(values) if measure != "box_iou"]
        parts += [f"{source if len(held_out) > 1 else 'held-out'} {mean:.3f}" for source, mean in held_out]
        return "  ".join(parts)


@contextmanager
def display(steps: int | None):
    """A function show(text, step or None, keep): a live bar on a terminal, else one plain line per stage and step."""
    live = sys.stdout.isatty() and not os.environ.get("CI")
    began, last_at, last = time.monotonic(), 0.0, ""
    columns = TimeElapsedColumn(), BarColumn(20), TextColumn("{task.description}", markup=False)
    with Bar(*columns, disable=not live) as bar:
        task = bar.add_task(STAGES[""], total=steps)

        def show(text: str, step: int | None, keep: bool) -> None:
            nonlocal last, last_at
            now = time.monotonic()
            bar.update(task, description=text, completed=step)
            if live and keep:
                bar.console.print(text, markup=False, highlight=False)
            if not live and (step is not None or text != last or now - last_at >= PLAIN_HEARTBEAT_SECONDS):
                last, last_at = text, now
                print(f"{timedelta(seconds=round(now - began))}  {text}", flush=True)

        yield show


@contextmanager
def received_signals():
    """The signals that ask us to stop, as a list that grows as they come; one ignored before stays so."""
    received: list[int] = []
    asked = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    earlier = {number: signal.signal(number, lambda n, _: received.append(n)) for number in asked}
    try:
        yield received
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def start(command: list[str], log: Path) -> subprocess.Popen:
    """In a session and process group of its own, which Ctrl-C on the terminal does not reach."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        try:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            why = f"cannot run it ({error.strerror}). Expected a program on the PATH or the path of one after '--'."
            raise ReportError(f"{command[0]}: {why}") from None


def send(child: subprocess.Popen, number: int) -> bool:
    """Send a signal to the child's process group (0 only asks); False when nothing of the group is left."""
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return False
    return True


def end_group(child: subprocess.Popen, grace: float) -> None:
    """See to it that nothing of the child's process group is left."""
    patience = STRAGGLER_SECONDS
    if child.poll() is None:  # we are the ones who failed: our output went away, say
        send(child, signal.SIGTERM)
        patience = grace
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and (child.poll() is None or send(child, 0)):
        time.sleep(0.05)
    send(child, signal.SIGKILL)
    child.wait()


def report_end(code: int, signals: list[int], begun: bool, metrics: Path, log: Path) -> None:
    if signals:
        print(f"stopped by {signal.Signals(signals[0]).name}; the log is {log}", flush=True)
    elif code != 0:
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        lines = "\n".join(f"    {line}" for line in error_message(log))
        print(f"the command failed ({cause}). The end of its log:\n\n{lines}\n\nthe whole log: {log}", flush=True)
    elif not begun:
        how = f"trainer.logger=[console,file] and the environment variable VERL_FILE_LOGGER_PATH={metrics}."
        print(f"the command ended well, but wrote no step to {metrics}. veRL writes there with {how}", flush=True)


COLOUR = re.compile(r"\x1b\[[0-9;]*m")
FROM_WORKER = re.compile(r"\((?:raylet|[^()]*\bpid=\d+[^()]*)\)")  # "(TaskRunner pid=123) ", as Ray puts before a line


def error_message(log: Path) -> list[str]:
    """The last lines of a log that are the command's own. Where the trainer fails, they hold its exception too; its
    workers' may be the fallout of the end.
    """
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        lines = COLOUR.sub("", file.read().decode(errors="replace")).rstrip().splitlines()
    own = [line for line in lines if not FROM_WORKER.match(line)]
    return (own or lines)[-ERROR_LINES:]
