"""The paper's tables, to stand beside our runs (arXiv 2504.02546, in %). What it reports is in paper.csv.

A column is a measure on one data source of the evaluation, under the name that veRL logs it by.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gpg_verl.report import ReportError
from reward_fns import sources


class Column(NamedTuple):
    """What stands in a column: a measure of the answers to one data source's questions.

    measure: "acc"; "box_iou", the mean IoU of boxes; "mask_giou" and "mask_ciou", of the masks that SAM makes of the
    boxes (gpg_verl/report/masks.py).
    """

    source: str
    measure: str = "acc"

    def __str__(self) -> str:
        return self.source if self.measure == "acc" else f"{self.source}, {self.measure}"


@dataclass(frozen=True)
class PaperTable:
    """columns: by header. The columns of `beside` are ours to report; the paper has no number."""

    name: str
    title: str
    columns: dict[str, Column]
    average: str | None = "Avg"  # header of the first value of a row, the average over the columns
    weights: tuple[int, ...] = ()  # of the columns in the average; none: all alike
    decimals: int = 1  # as printed
    run_per_column: bool = False  # the paper trained a model for each column
    note: str | None = None  # what a reader must know of the paper's numbers

    @property
    def headers(self) -> list[str]:
        return [*([self.average] if self.average else []), *self.columns]

    @property
    def rows(self) -> dict[str, dict[str, float | None]]:
        """Row → header → what the paper reports."""
        with Path(__file__).with_name("paper.csv").open(encoding="utf-8", newline="") as file:
            lines = [line for line in csv.reader(file) if line[0] == self.name]
        values = {row: [float(value) if value else None for value in printed] for _, row, *printed in lines}
        missing = [None] * len(self.columns)  # what only we measure
        return {row: dict(zip(self.headers, found + missing, strict=False)) for row, found in values.items()}


MATHEMATICS = {
    "AIME24": Column(sources.AIME24),
    "MATH-500": Column(sources.MATH_500),
    "AMC23": Column(sources.AMC23),
    "Minerva": Column(sources.MINERVA),
    "OlympiadBench": Column(sources.OLYMPIADBENCH),
}
CV_BENCH = {task: Column(f"{sources.CV_BENCH}/{task}") for task in ("Count", "Relation", "Depth", "Distance")}
LISA = {
    "mIoU test (boxes)": Column(sources.LISA_TEST, "box_iou"),
    "mIoU val (boxes)": Column(sources.LISA_VAL, "box_iou"),
    "gIoU test (masks)": Column(sources.LISA_TEST, "mask_giou"),
    "gIoU val (masks)": Column(sources.LISA_VAL, "mask_giou"),  # from here on without a number of the paper's
    "cIoU test (masks)": Column(sources.LISA_TEST, "mask_ciou"),
    "cIoU val (masks)": Column(sources.LISA_VAL, "mask_ciou"),
}
LISA_NOTE = (
    "the paper does not say what its columns compare; in the code that they come from (Visual-RFT's), mIoU is the mean "
    "IoU of boxes, and gIoU the mean IoU of the masks that SAM makes of them"
)
CLASSES = {
    "Flower102": Column(sources.FLOWERS),
    "Pets37": Column(sources.PETS),
    "FGVC Aircraft": Column(sources.AIRCRAFT),
    "Cars196": Column(sources.CARS),
}
CLASSES_NOTE = "the models of a row's columns are trained one by one: a run of ours fills one column"
CV_QUESTIONS = (788, 650, 600, 600)
TABLES = {
    table.name: table
    for table in (
        PaperTable("T1", "1.5B models, from DeepSeek-R1-Distill-Qwen-1.5B", MATHEMATICS),
        PaperTable("T2", "7B models, from Qwen2.5-Math-7B", MATHEMATICS),
        PaperTable("T3", "ablation, Qwen2.5-Math-7B on MATH", MATHEMATICS),
        PaperTable("T4", "CV-Bench, Qwen2-VL-2B trained on SAT", CV_BENCH, "Total", CV_QUESTIONS, decimals=2),
        PaperTable("T5", "reasoning grounding on LISA, Qwen2-VL-2B trained on 239 images", LISA, None, note=LISA_NOTE),
        PaperTable("T6", "four-shot classification, Qwen2-VL-2B", CLASSES, run_per_column=True, note=CLASSES_NOTE),
        PaperTable("T7", "GEOQA, Qwen2.5-VL-3B-Instruct", {"GEOQA": Column(sources.GEOQA_TEST)}, None, decimals=2),
    )
}


def find_row(table: str, name: str) -> str:
    """The row of that name; letter case, spaces and the kind of minus sign do not matter."""

    def plain(text: str) -> str:
        return re.sub(r"\s", "", text.replace("−", "-").casefold())

    if table not in TABLES:
        raise ReportError(f"{table!r} is no table: expected one of {', '.join(TABLES)}, by --table or in run.json.")
    rows = TABLES[table].rows
    for row in rows:
        if plain(row) == plain(name):
            return row
    raise ReportError(f"{name!r} is no row of {table}. Its rows: {'; '.join(rows)}. Name one with --row.")
