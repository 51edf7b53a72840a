"""A run read back from the files veRL leaves behind, while it is going, when it is done, and after a crash.

`metrics*.jsonl`            one line per step, {"step": n, "data": {name: value}}, from veRL's file logger
`validation/<step>.jsonl`   one line per held-out answer, from `trainer.validation_data_dir`
`masks.json`                of the last validation, from `python -m gpg_verl.report.masks`
`run.json`                  the row of the paper's tables it is, from a recipe: {"table": "T1", "row": "GPG-RS1"}
`smoke`                     from a recipe's run in miniature
`eval/`                     the run's evaluation: a run folder of a validation with `trainer.val_only=True`
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from gpg_verl.report import ReportError
from gpg_verl.report.paper import Column, find_row

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
STAGES = {"gen": "timing_s/gen", "update": "timing_s/update_actor", "weights": "timing_s/update_weights"}
# Parts of some steps: passes that GPG does without (veRL still logs some microseconds), and saving.
PARTS = {"old log-probs": "timing_s/old_log_prob", "reference": "timing_s/ref", "save": "timing_s/save_checkpoint"}

# A data source may itself hold slashes ("openai/gsm8k"). The reward stands where the reward function gives no `acc`.
HELD_OUT = re.compile(r"val-(core|aux)/(.+)/(acc|reward|box_iou)/mean@(\d+)")
SCORES = {"acc": "acc", "reward": "score", "box_iou": "box_iou"}  # measure → its field of an answer
HELD_OUT_COLUMNS = ["step", "source", "measure", "k", "value", "questions", "error", "truncated"]


@dataclass(frozen=True)
class Run:
    """One run as the report sees it.

    label: the row of the paper's tables that it is, or else its name; table: that table's name.
    steps: (logged steps, metrics), ascending, NaN where a step lacks a metric; step 0 is validation before training.
    held_out: a line for each mean of a validation: of `k` answers a question, with its standard error over the
        questions, and the share of answers that were truncated; NaN where that is not known.
    evaluation: the run in its folder `eval`; smoke: whether a recipe ran it in miniature.
    """

    name: str
    folder: Path
    label: str
    table: str | None
    steps: pd.DataFrame
    held_out: pd.DataFrame
    notes: list[str]
    evaluation: Run | None
    smoke: bool

    @cached_property
    def training(self) -> pd.DataFrame:
        """The steps that trained: those with anything but validation metrics."""
        return self.steps[self.steps.filter(regex=r"^(?!val-)").notna().any(axis=1)]

    @cached_property
    def validations(self) -> pd.DataFrame:
        """Of `held_out` what is measured for every data source: accuracy, or the reward in its place."""
        return self.held_out[self.held_out.measure.isin(["acc", "reward"])]

    @property
    def results(self) -> dict[Column, tuple]:
        """The last line of each; the evaluation's stands above the run's own, data set by data set."""
        last = {Column(line.source, line.measure): line for line in self.held_out.itertuples()}
        return last | (self.evaluation.results if self.evaluation else {})

    def column(self, *names: str) -> pd.Series:
        """Over the training steps the first of these metrics that a step has, NaN where it has none."""
        return self.training.reindex(columns=list(names)).bfill(axis=1).iloc[:, 0]

    def stages(self) -> pd.DataFrame:
        """(training steps, stages) seconds; `other` is the rest of a step, `test` the validation after it."""
        named = pd.DataFrame({stage: self.column(name) for stage, name in (STAGES | PARTS).items()})
        rest = (self.column(STEP_SECONDS) - named.sum(axis=1)).clip(lower=0)
        named.insert(len(STAGES), "other", rest)
        return named.assign(test=self.column(TEST_SECONDS))

    def seconds(self) -> pd.Series:
        """Of training and validation until the end of each step; empty where a training step's are not known."""
        if self.training.empty or self.column(STEP_SECONDS).isna().any():
            return pd.Series(dtype=float)
        return self.steps.reindex(columns=[STEP_SECONDS, TEST_SECONDS]).sum(axis=1).cumsum()


def load_run(path: Path, table: str | None = None, row: str | None = None) -> Run:
    """The run in a folder, or in one metrics file; raises ReportError where there is none.

    table, row: of the paper's tables; they stand above the run's own run.json.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / "run.json"
    claimed = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    table, row = table or claimed.get("table"), row or claimed.get("row")
    notes: list[str] = []
    steps = _merged(_files(path), notes)
    evaluation = None
    if (folder / "eval").is_dir():
        try:
            evaluation = load_run(folder / "eval")
        except ReportError as error:  # it has not logged yet, or never did: no reason to hide the run
            notes.append(f"evaluation left out: {error}")
    name = folder.resolve().name if path.is_dir() or path.stem == "metrics" else path.stem
    return Run(
        name=name,
        folder=folder,
        label=find_row(table, row) if table and row else row or name,
        table=table if row else None,
        steps=pd.DataFrame(list(steps.values()), index=list(steps)).sort_index(),
        held_out=_held_out(folder, steps),
        notes=notes,
        evaluation=evaluation,
        smoke=(folder / "smoke").exists(),
    )


def _files(path: Path) -> list[Path]:
    """The run's metrics files in the order they were last written."""
    files = [path] if path.is_file() else list(path.glob("metrics*.jsonl"))
    if files := files or list(path.glob("checkpoints/metrics*.jsonl")):
        return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name))
    logger = path if path.suffix == ".jsonl" else path / "metrics.jsonl"
    raise ReportError(
        f"{path}: no metrics file here. Expected a folder with metrics.jsonl, or the path of one. A GPG run keeps one "
        "in trainer.default_local_dir. veRL writes one with trainer.logger=[console,file] and the environment variable "
        f"VERL_FILE_LOGGER_PATH={logger}."
    )


def _merged(files: list[Path], notes: list[str]) -> dict[int, dict[str, float]]:
    """The steps of a run that may have been resumed. Raises ReportError where there is none.

    A folder may hold a file for each start, and a file several: where the steps go back, another one has started. It
    replaces the earlier ones from its first step on, which is merged by name: a resume validates again under its step.
    """
    if len(files) > 1:
        notes.append("merged, the later file wins: " + ", ".join(file.name for file in files))
    expected = f'{{"step": 3, "data": {{"{REWARD}": 0.5, ...}}}}, as veRL\'s file logger writes it'
    steps: dict[int, dict[str, float]] = {}
    for file in files:
        starts, last = 1, -1
        for step, values in _read_lines(file, step_of, expected, notes):
            starts += step < last
            steps = {s: kept for s, kept in steps.items() if s <= step}
            steps[step] = steps.get(step, {}) | values
            last = step
        if starts > 1:
            notes.append(f"{file.name}: {starts} starts in one file, the later one wins")
    if not steps:
        raise ReportError(
            f"{files[-1]}: it holds no complete step. Expected a line for each, as trainer.logger=[console,file] "
            "writes them. The run may not have finished its first step yet, or have failed before it: look at its log."
        )
    return steps


def _read_lines(file: Path, parse: Callable, expected: str, notes: list[str]) -> list:
    """What `parse` makes of each line's JSON. A last line without its end is being written, or was cut off."""
    found = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                found.append(parse(json.loads(line)))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                if not line.endswith(b"\n"):
                    notes.append(f"{file.name}: the last line is incomplete and was left out")
                    break
                raise ReportError(
                    f"{file}, line {number}: {line[:60]!r} ({type(error).__name__}: {error}). Expected {expected}. "
                    "Delete the line if the run was cut off while writing it."
                ) from None
    return found


def step_of(record: dict) -> tuple[int, dict[str, float]]:
    """(step, metrics) of one line of a metrics file; metrics that are not finite numbers are left out."""
    values = record["data"].items()
    return int(record["step"]), {n: float(v) for n, v in values if isinstance(v, int | float) and math.isfinite(v)}


def held_out_means(values: dict[str, float]) -> list[tuple[str, str, int, float]]:
    """(data source, measure, answers a question, mean) of what a step validated."""
    found = ((HELD_OUT.fullmatch(name), value) for name, value in values.items())
    # Beside the accuracy veRL logs the reward too, as auxiliary.
    return [(m[2], m[3], int(m[4]), value) for m, value in found if m and (m[1] == "aux") == (m[3] == "box_iou")]


def _held_out(folder: Path, steps: dict[int, dict[str, float]]) -> pd.DataFrame:
    lines = []
    for step, values in steps.items():
        means = held_out_means(values)
        answers = _answers(folder / f"validation/{step}.jsonl") if means else None
        alone = len({source for source, *_ in means}) == 1
        for source, measure, k, value in means:
            own = answers if alone and answers.source.isna().all() else answers[answers.source == source]
            of_questions = own.groupby("question")[measure].mean()  # answers to one question go together
            # Another mean than veRL's: the answers are still being written, or some failed.
            known = len(own) and math.isclose(of_questions.mean(), value, abs_tol=1e-4)
            error = (len(of_questions), of_questions.sem()) if known else (None, None)
            # Logged where the reward function says of each answer whether it was cut off, as reward_fns does.
            truncated = values.get(f"val-aux/{source}/truncated/mean@{k}")
            lines.append((step, source, measure, k, value, *error, truncated))
    if (masks := folder / "masks.json").is_file():  # what gpg_verl.report.masks measured of the answers
        for source, of in json.loads(masks.read_text(encoding="utf-8"))["sources"].items():
            for measure in ("mask_giou", "mask_ciou"):
                error = of["images"], of.get(f"{measure}_error")
                lines.append((of["step"], source, measure, 1, of[measure], *error, None))
    found = pd.DataFrame(lines, columns=HELD_OUT_COLUMNS)
    return found.astype({"questions": float, "error": float, "truncated": float})


def _answers(dump: Path) -> pd.DataFrame:
    """Question, data source and scores of each answer to a validation, none where veRL kept none.

    `uid` is "question_answer_output". A reward function that returns `data_source` tells where an answer belongs.
    """

    def scores(row: dict) -> dict:
        found = {measure: float(row[name]) for measure, name in SCORES.items() if name in row}
        return found | {"question": row["uid"].rsplit("_", 2)[0], "source": row.get("data_source")}

    expected = "an answer with uid and numbers under acc and score, as trainer.validation_data_dir writes it"
    lines = _read_lines(dump, scores, expected, []) if dump.is_file() else []
    return pd.DataFrame(lines, columns=["question", "source", *SCORES])
