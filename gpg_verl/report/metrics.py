"""A run read back from the files veRL leaves behind, while it is going, when it is done, and after a crash.

`metrics*.jsonl`            one line per step, {"step": n, "data": {name: value}}, from veRL's file logger
`events.out.tfevents.*`     the same from its tensorboard logger, read where there is no metrics file
`validation/<step>.jsonl`   one line per held-out answer, from `trainer.validation_data_dir`
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from gpg_verl.report import ReportError
from gpg_verl.report.dumps import read_answers

REWARD = "critic/score/mean"
VALID_SHARE = "gpg/valid_share"
ALPHA = "gpg/alpha"
LENGTH = "response_length/mean"
TRUNCATED = "response_length/clip_ratio"  # share of responses as long as allowed
# From the old-log-prob pass, or without it from the update (actor_rollout_ref.actor.calculate_entropy=True).
ENTROPY = ("actor/entropy", "actor/entropy_loss")
GRAD_NORM = "actor/grad_norm"
STEP_SECONDS = "timing_s/step"
TEST_SECONDS = "timing_s/testing"  # validation; veRL times it outside the step
SAVE_SECONDS = "timing_s/save_checkpoint"  # inside the step, on the steps that save
STAGES = {"gen": "timing_s/gen", "update": "timing_s/update_actor", "weights": "timing_s/update_weights"}
# Forward passes that GPG does without; without them veRL still logs some microseconds.
PASSES = {"old log-probs": "timing_s/old_log_prob", "reference": "timing_s/ref"}
LEAST_SECONDS = 0.01  # what takes less is not shown
EXPECTED_METRICS = (REWARD, VALID_SHARE, ALPHA, LENGTH, *STAGES.values(), STEP_SECONDS, GRAD_NORM)

EVENTS = "events.out.tfevents."  # how tensorboard's files are called
EVENT_FOLDERS = ("tensorboard", "tensorboard_log")  # below the second veRL has a folder for project and experiment

# A data source may itself hold slashes ("openai/gsm8k").
HELD_OUT = re.compile(r"val-core/(?P<source>.+)/(?P<kind>acc|reward)/mean@(?P<answers>\d+)")


@dataclass(frozen=True)
class HeldOut:
    """Held-out accuracy of one data source; mean reward, where the reward function gives no `acc`; another measure."""

    step: int
    source: str
    kind: str  # "acc", "reward", or the measure's name
    value: float
    k: int = 1  # answers per question
    questions: int | None = None
    error: float | None = None  # standard error over the questions
    truncated: float | None = None  # share of answers that ran into the limit
    why_no_error: str | None = None


@dataclass(frozen=True)
class Run:
    name: str
    folder: Path
    steps: dict[int, dict[str, float]]  # every logged step, ascending; step 0 is validation before training
    held_out: list[HeldOut]
    notes: list[str]
    written: datetime  # when its last line was

    @property
    def training_steps(self) -> list[int]:
        """Steps that trained: those with anything but validation metrics."""
        return [step for step, values in self.steps.items() if any(not n.startswith("val-") for n in values)]

    @property
    def missing(self) -> list[str]:
        """Expected metrics that no training step has."""
        return [name for name in EXPECTED_METRICS if not any(name in values for values in self.steps.values())]

    def column(self, name: str) -> list[float | None]:
        """One metric over the training steps, None where a step lacks it."""
        return [self.steps[step].get(name) for step in self.training_steps]

    def other_seconds(self) -> list[float | None]:
        """Seconds of each training step outside the named stages and passes and outside saving a checkpoint."""
        named = (*STAGES.values(), *PASSES.values(), SAVE_SECONDS)
        totals = ((self.steps[step], self.steps[step].get(STEP_SECONDS)) for step in self.training_steps)
        return [
            None if total is None else max(0.0, total - sum(values.get(name, 0.0) for name in named))
            for values, total in totals
        ]

    def hours(self) -> dict[int, float]:
        """Hours of training and validation until the end of each step; empty where a step's seconds are missing, or
        nothing was trained."""
        elapsed, total = {}, 0.0
        if not self.training_steps:
            return {}
        for step, values in self.steps.items():
            if step in self.training_steps and STEP_SECONDS not in values:
                return {}
            total += values.get(STEP_SECONDS, 0.0) + values.get(TEST_SECONDS, 0.0)
            elapsed[step] = total / 3600
        return elapsed


def load_run(path: Path) -> Run:
    """The run in a folder, or in one metrics file; raises ReportError where there is none."""
    folder, files, events = _find_files(path)
    notes: list[str] = []
    if events:
        steps = _read_events(events, notes)
    else:
        steps = _merge([start for file in files for start in _starts(file, _read_metrics(file, notes), notes)])
    if not steps:
        raise ReportError(
            f"{events[-1]}: no step in it yet. The run may not have finished its first one; look at its log."
            if events
            else f"{files[-1]}, line 1: the file holds no complete line. Expected one JSON line per step. The "
            f"run may not have finished its first step yet, or have failed before it: look at its log."
        )
    if len(files) > 1:
        notes.insert(0, "merged, the later file wins: " + ", ".join(file.name for file in files))
    name = path.stem if path.is_file() and path.suffix == ".jsonl" and path.stem != "metrics" else folder.resolve().name
    return Run(name, folder, steps, _held_out(folder, steps), notes, _written([*files, *events]))


def _find_files(path: Path) -> tuple[Path, list[Path], list[Path]]:
    """The run's folder, its metrics files in the order they were last written, and else its tensorboard files."""
    if path.is_file():
        return (path.parent, [], [path]) if path.name.startswith(EVENTS) else (path.parent, [path], [])

    def by_time(files: Iterable[Path]) -> list[Path]:
        return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name))

    if files := by_time(path.glob("metrics*.jsonl")):
        return path, files, []
    folders = [path / name for name in EVENT_FOLDERS]
    if events := by_time([*path.glob(f"{EVENTS}*"), *(file for f in folders for file in f.rglob(f"{EVENTS}*"))]):
        return path, [], events
    raise ReportError(
        f"{path}: no metrics file here. Expected a folder with metrics.jsonl, or the path of one. "
        f"veRL writes one with trainer.logger=[console,file] and the environment variable "
        f"VERL_FILE_LOGGER_PATH={path if path.suffix == '.jsonl' else path / 'metrics.jsonl'}."
    )


def _written(files: list[Path]) -> datetime:
    return datetime.fromtimestamp(max(file.stat().st_mtime for file in files)).astimezone()


def _merge(attempts: list[list[tuple[int, dict[str, float]]]]) -> dict[int, dict[str, float]]:
    """The steps of a run that was resumed, ascending.

    veRL truncates its metrics file when it resumes, so a folder may hold one file per attempt: from its first step on,
    a later one replaces the earlier ones. That first step is merged by metric name: on resume veRL validates again
    under the step it resumed from.
    """
    steps: dict[int, dict[str, float]] = {}
    for lines in attempts:
        if lines:
            steps = {step: values for step, values in steps.items() if step <= lines[0][0]}
        for step, values in lines:
            steps[step] = steps.get(step, {}) | values
    return dict(sorted(steps.items()))


def _starts(
    file: Path, lines: list[tuple[int, dict[str, float]]], notes: list[str]
) -> list[list[tuple[int, dict[str, float]]]]:
    """The lines of each run that wrote into one file: where the steps go back, another one has started."""
    starts: list[list[tuple[int, dict[str, float]]]] = []
    for step, values in lines:
        if not starts or step < starts[-1][-1][0]:
            starts.append([])
        starts[-1].append((step, values))
    if len(starts) > 1:
        notes.append(f"{file.name}: {len(starts)} starts in one file, the later one wins")
    return starts


def parse_line(line: bytes, where: str) -> tuple[int, dict[str, float]]:
    """(step, metrics) of one line of a metrics file; metrics that are not finite numbers are left out."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _malformed(where, f"this is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise _malformed(where, f"this is JSON, but a {type(record).__name__}")
    step, data = record.get("step"), record.get("data")
    if not isinstance(step, int) or not isinstance(data, dict):
        raise _malformed(where, f"the fields here are {', '.join(record) or 'none'}")
    return step, {n: float(v) for n, v in data.items() if isinstance(v, int | float) and math.isfinite(v)}


def held_out_means(values: dict[str, float]) -> list[tuple[str, str, int, float]]:
    """(data source, "acc" or "reward", answers per question, mean) of each data source validated."""
    found = ((HELD_OUT.fullmatch(name), value) for name, value in values.items())
    return [(m["source"], m["kind"], int(m["answers"]), value) for m, value in found if m]


def last_measured(run: Run, source: str, measure: str) -> HeldOut | None:
    """The last validation's mean of another number that the reward function returns for each answer, as `box_iou`."""
    name = re.compile(rf"val-aux/{re.escape(source)}/{re.escape(measure)}/mean@(\d+)")
    for step, values in reversed(run.steps.items()):
        for match, value in ((name.fullmatch(key), value) for key, value in values.items()):
            if match:
                result = HeldOut(step, source, measure, value, k=int(match[1]))
                return _with_answers(result, _dump(run.folder, step), alone=False)
    return None


def _malformed(where: str, seen: str) -> ReportError:
    return ReportError(
        f'{where}: {seen}. Expected {{"step": 3, "data": {{"{REWARD}": 0.5, ...}}}}, as veRL\'s file logger '
        f"writes it. Delete the line if the run was cut off while writing it, or name another file."
    )


def _read_metrics(file: Path, notes: list[str]) -> list[tuple[int, dict[str, float]]]:
    *lines, tail = file.read_bytes().split(b"\n")
    parsed = [parse_line(line, f"{file}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    if tail.strip():  # no newline yet: a run is writing it, or was cut off
        try:
            parsed.append(parse_line(tail, file.name))
        except ReportError:
            notes.append(f"{file.name}: the last line is incomplete and was left out")
    elif not parsed:
        notes.append(f"{file.name}: empty")
    return parsed


def _read_events(files: list[Path], notes: list[str]) -> dict[int, dict[str, float]]:
    """The steps in tensorboard's files, one file per attempt."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    except ImportError:
        raise ReportError(
            f"{files[0]}: reading it takes the package tensorboard. Install it with: pip install tensorboard"
        ) from None
    attempts, garbage = [], []
    for file in files:
        steps: dict[int, dict[str, float]] = {}
        events = list(LegacyEventFileLoader(str(file)).Load())  # up to a record that was cut off
        if not events:
            garbage.append(file)
        for event in events:
            for value in event.summary.value:
                if value.HasField("simple_value") and math.isfinite(value.simple_value):
                    steps.setdefault(event.step, {})[value.tag] = value.simple_value
        attempts.append(sorted(steps.items()))
    if len(garbage) == len(files):
        raise ReportError(
            f"{garbage[-1]}: no record of tensorboard's in it. Expected what veRL writes with "
            "trainer.logger=[console,tensorboard]; delete the file, or name another one."
        )
    notes += [f"{file.name}: no record of tensorboard's in it, so it was left out" for file in garbage]
    return _merge(attempts)


def _held_out(folder: Path, steps: dict[int, dict[str, float]]) -> list[HeldOut]:
    results = []
    for step, values in steps.items():
        means = held_out_means(values)
        dump = _dump(folder, step)
        for source, kind, k, value in means:
            # Logged where the reward function says of each answer whether it was cut off, as reward_fns does.
            truncated = values.get(f"val-aux/{source}/truncated/mean@{k}")
            result = HeldOut(step, source, kind, value, k, truncated=truncated)
            results.append(_with_answers(result, dump, alone=len(means) == 1))
    return results


def _dump(folder: Path, step: int) -> Path:
    return folder / "validation" / f"{step}.jsonl"


def _with_answers(result: HeldOut, dump: Path, alone: bool) -> HeldOut:
    """The result with what the answers themselves tell: how many questions, and the standard error."""
    if not dump.is_file():
        return replace(
            result,
            why_no_error="no dump validation/<step>.jsonl to count the questions in; "
            f"set trainer.validation_data_dir={dump.parent}",
        )
    found = read_answers(dump, "score" if result.kind == "reward" else result.kind)
    answers = found.get(result.source) or (found.get(None) if alone else None)
    if answers is None:
        return replace(result, why_no_error="the validation dump does not say which data source an answer belongs to")
    if not math.isclose(answers.mean, result.value, abs_tol=1e-4):  # still being written, or answers failed
        return replace(result, why_no_error="the validation dump does not hold all answers of this validation")
    return replace(
        result,
        questions=len(answers.scores),
        error=answers.standard_error,
        why_no_error=None if len(answers.scores) > 1 else "one question has no spread",
    )
