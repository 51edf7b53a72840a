"""A training run read back from the files veRL leaves behind.

`metrics*.jsonl`            one line per step, {"step": n, "data": {name: value}}, from veRL's file logger
`validation/<step>.jsonl`   one line per held-out answer, from `trainer.validation_data_dir`
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

REWARD = "critic/score/mean"
VALID_SHARE = "gpg/valid_share"
ALPHA = "gpg/alpha"
LENGTH = "response_length/mean"
GRAD_NORM = "actor/grad_norm"
STEP_SECONDS = "timing_s/step"
TEST_SECONDS = "timing_s/testing"  # validation; veRL times it outside the step
SAVE_SECONDS = "timing_s/save_checkpoint"  # inside the step, on the steps that save
STAGES = {"gen": "timing_s/gen", "update": "timing_s/update_actor", "weights": "timing_s/update_weights"}
EXPECTED_METRICS = (REWARD, VALID_SHARE, ALPHA, LENGTH, *STAGES.values(), STEP_SECONDS, GRAD_NORM)

# A data source may itself hold slashes ("openai/gsm8k").
HELD_OUT = re.compile(r"val-core/(?P<source>.+)/(?P<kind>acc|reward)/mean@(?P<answers>\d+)")


class ReportError(Exception):
    """Something the reader of the report can put right; the message says what and how."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out accuracy (or mean reward, where the reward function gives no `acc`) of one data source."""

    step: int
    source: str
    kind: str  # "acc" or "reward"
    value: float
    questions: int | None = None
    error: float | None = None  # standard error √(p(1−p)/n)
    why_no_error: str | None = None


@dataclass(frozen=True)
class Run:
    name: str
    folder: Path
    steps: dict[int, dict[str, float]]  # every logged step, ascending; step 0 is validation before training
    held_out: list[HeldOut]
    notes: list[str]

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
        """Seconds of each training step outside the named stages and outside saving a checkpoint."""
        named = (*STAGES.values(), SAVE_SECONDS)
        totals = ((self.steps[step], self.steps[step].get(STEP_SECONDS)) for step in self.training_steps)
        return [
            None if total is None else max(0.0, total - sum(values.get(name, 0.0) for name in named))
            for values, total in totals
        ]


def load_run(path: Path) -> Run:
    """The run in a folder, or in one metrics file.

    veRL truncates its metrics file when it resumes, so a folder may hold one file per attempt. They are read
    in the order they were last written; from its first step on, a later file replaces the earlier ones. That
    first step is merged by metric name: on resume veRL validates again under the step it resumed from.
    """
    if path.is_file():
        folder, files = path.parent, [path]
        name = folder.resolve().name if path.stem == "metrics" else path.stem
    else:
        folder, name = path, path.resolve().name
        files = sorted(path.glob("metrics*.jsonl"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    if not files:
        raise ReportError(
            f"{path}: no metrics file here. Expected a folder with metrics.jsonl, or the path of one. "
            f"veRL writes one with trainer.logger=[console,file] and the environment variable "
            f"VERL_FILE_LOGGER_PATH={path if path.suffix == '.jsonl' else path / 'metrics.jsonl'}."
        )

    notes: list[str] = []
    steps: dict[int, dict[str, float]] = {}
    for file in files:
        lines = _read_metrics(file, notes)
        if lines:
            steps = {step: values for step, values in steps.items() if step <= lines[0][0]}
        for step, values in lines:
            steps[step] = steps.get(step, {}) | values
    if not steps:
        raise ReportError(
            f"{files[-1]}, line 1: the file holds no complete line. Expected one JSON line per step. The run "
            f"may not have finished its first step yet, or have failed before it: look at its log."
        )
    if len(files) > 1:
        notes.insert(0, "merged, the later file wins: " + ", ".join(file.name for file in files))
    steps = dict(sorted(steps.items()))
    return Run(name, folder, steps, _held_out(folder, steps), notes)


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


def _held_out(folder: Path, steps: dict[int, dict[str, float]]) -> list[HeldOut]:
    results = []
    for step, values in steps.items():
        means = held_out_means(values)
        for source, kind, answers, value in means:
            questions, why = _count_questions(folder / "validation" / f"{step}.jsonl", kind, answers, len(means))
            # For mean@k with k > 1, and for partial credit, this is an upper bound.
            if not 0 <= value <= 1:
                questions, why = None, "the mean lies outside 0..1, so √(p(1−p)/n) does not hold"
            error = math.sqrt(value * (1 - value) / questions) if questions else None
            results.append(HeldOut(step, source, kind, value, questions, error, why))
    return results


def _count_questions(dump: Path, kind: str, answers: int, sources: int) -> tuple[int | None, str | None]:
    """Number of held-out questions in a validation dump, or None and why a standard error cannot be told."""
    if not dump.is_file():
        return None, (
            f"no dump validation/<step>.jsonl to count the questions in; set trainer.validation_data_dir={dump.parent}"
        )
    if sources > 1:
        return None, "veRL's validation dump does not say which data source an answer belongs to"
    key = "acc" if kind == "acc" else "score"
    rows = 0
    for i, line in enumerate(dump.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            value = row.get(key)
        except (ValueError, AttributeError):
            raise ReportError(
                f"{dump}, line {i}: not a JSON object. Expected one answer per line, with its score, as "
                f"veRL's trainer.validation_data_dir writes it. Delete the file to report without it."
            ) from None
        if isinstance(value, int | float) and not 0 <= value <= 1:
            return None, f"some {key} lies outside 0..1, so √(p(1−p)/n) does not hold"
        rows += 1
    if rows < answers:
        return None, "the validation dump holds fewer answers than one question has"
    return rows // answers, None
