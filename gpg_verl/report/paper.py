"""The paper's tables: what it reports, to stand beside our runs (arXiv 2504.02546, tables in %).

A column is a measure on one data source of the evaluation, under the name that veRL logs it by.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reward_fns import sources

Cells = tuple[float | None, ...]


@dataclass(frozen=True)
class Column:
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
    name: str
    title: str
    columns: dict[str, Column]  # by header
    rows: dict[str, Cells]  # row name → the average over the columns if the table has one, then each column
    average: str | None = "Avg"  # its header
    weights: tuple[int, ...] = ()  # of the columns in the average; none: all alike
    decimals: int = 1  # as printed
    beside: dict[str, Column] = field(default_factory=dict)  # ours to report below the table; the paper has no number
    run_per_column: bool = False  # the paper trained a model for each column
    note: str | None = None  # what a reader must know of the paper's numbers

    @property
    def headers(self) -> list[str]:
        return [*([self.average] if self.average else []), *self.columns]


MATHEMATICS = {
    "AIME24": Column(sources.AIME24),
    "MATH-500": Column(sources.MATH_500),
    "AMC23": Column(sources.AMC23),
    "Minerva": Column(sources.MINERVA),
    "OlympiadBench": Column(sources.OLYMPIADBENCH),
}

TABLES = {
    table.name: table
    for table in (
        PaperTable(
            "T1",
            "1.5B models, from DeepSeek-R1-Distill-Qwen-1.5B",
            MATHEMATICS,
            {
                "DeepSeek-R1-Distill-Qwen-1.5B": (48.9, 28.8, 82.8, 62.9, 26.5, 43.3),
                "Still-3-1.5B-Preview": (51.6, 32.5, 84.4, 66.7, 29.0, 45.4),
                "Open-RS1": (53.1, 33.3, 83.8, 67.5, 29.8, 50.9),  # the paper's re-run
                "Open-RS3": (52.0, 26.7, 85.4, 70.0, 27.9, 50.2),  # the paper's re-run
                "GPG-RS1": (55.7, 33.3, 87.6, 77.5, 29.4, 50.5),
                "GPG-RS3": (55.5, 33.3, 85.0, 80.0, 26.8, 52.4),
            },
        ),
        PaperTable(
            "T2",
            "7B models, from Qwen2.5-Math-7B",
            MATHEMATICS,
            {
                "Qwen2.5-Math-7B-Instruct": (43.8, 13.3, 79.8, 50.6, 34.6, 40.7),
                "Qwen2.5-Math-7B": (30.9, 13.3, 57.6, 45.0, 14.7, 23.7),
                # The average fits 20.0 on AIME24; as printed it is 0.2.
                "Qwen2.5-Math-7B (no template)": (38.2, 0.2, 69.0, 45.8, 21.3, 34.7),
                "rStar-Math-7B": (None, 26.7, 78.4, 47.5, None, 47.1),
                "Eurus-2-7B-PRIME": (48.9, 26.7, 79.2, 57.8, 38.6, 42.1),
                "Oat-Zero-7B": (51.4, 43.3, 80.0, 62.7, 30.1, 41.0),
                "Oat-Zero-7B (re-run)": (47.8, 30.0, 80.6, 55.4, 29.0, 44.0),
                "OpenReasoner-Zero-7B @ 8k": (45.9, 13.3, 82.4, 54.2, 31.6, 47.9),
                "SimpleRL-Zero-7B": (46.6, 26.7, 78.2, 60.2, 27.6, 40.3),
                "GPG-7B": (57.7, 36.7, 84.6, 82.5, 39.0, 45.8),
            },
        ),
        PaperTable(
            "T3",
            "ablation, Qwen2.5-Math-7B on MATH",
            MATHEMATICS,
            {
                "Qwen2.5-Math-7B": (30.9, 13.3, 57.6, 45.0, 14.7, 23.7),
                "GRPO": (43.7, 16.7, 73.4, 62.5, 30.2, 35.7),
                "Dr. GRPO": (43.7, 26.7, 74.6, 50.0, 30.1, 37.3),  # the paper's re-run
                "GPG, F_norm=1, α=1": (43.9, 23.3, 76.3, 52.5, 30.1, 37.4),
                "GPG, F_norm=std, α=1": (45.3, 23.3, 73.6, 60.0, 30.5, 39.3),
                "GPG, F_norm=1, α=B/(B−M)": (47.8, 30.0, 75.0, 62.5, 33.1, 38.2),
                "GPG, F_norm=1, α=B/(B−M), β_th=0.6": (48.3, 30.0, 76.2, 62.5, 34.2, 39.0),
            },
        ),
        PaperTable(
            "T4",
            "CV-Bench, Qwen2-VL-2B trained on SAT",
            {task: Column(f"{sources.CV_BENCH}/{task}") for task in ("Count", "Relation", "Depth", "Distance")},
            {
                # The base model's total does not fit its row: weighted as the others' it is 29.1.
                "Qwen2-VL-2B": (31.38, 54.69, 22.46, 0.16, 31.66),
                "+ SFT": (57.84, 60.02, 68.92, 55.00, 45.83),
                "+ GRPO": (59.47, 59.64, 66.76, 54.16, 56.66),
                "+ GPG": (76.15, 66.62, 83.23, 81.66, 75.50),
            },
            average="Total",
            weights=(788, 650, 600, 600),  # questions
            decimals=2,
        ),
        PaperTable(
            "T5",
            "reasoning grounding on LISA, Qwen2-VL-2B trained on 239 images",
            {
                "mIoU test (boxes)": Column(sources.LISA_TEST, "box_iou"),
                "mIoU val (boxes)": Column(sources.LISA_VAL, "box_iou"),
                "gIoU test (masks)": Column(sources.LISA_TEST, "mask_giou"),
            },
            {
                "Qwen2-VL-2B": (26.9, 30.1, 25.3),
                "+ SFT": (28.3, 29.7, 25.3),
                "+ GRPO": (37.6, 34.4, 34.4),
                "+ GPG": (51.8, 51.3, 50.4),
            },
            average=None,
            beside={
                "gIoU val (masks)": Column(sources.LISA_VAL, "mask_giou"),
                "cIoU test (masks)": Column(sources.LISA_TEST, "mask_ciou"),
                "cIoU val (masks)": Column(sources.LISA_VAL, "mask_ciou"),
            },
            note="the paper does not say what its columns compare; in the code that they come from (Visual-RFT's), "
            "mIoU is the mean IoU of boxes, and gIoU the mean IoU of the masks that SAM makes of them",
        ),
        PaperTable(
            "T6",
            "four-shot classification, Qwen2-VL-2B",
            {
                "Flower102": Column(sources.FLOWERS),
                "Pets37": Column(sources.PETS),
                "FGVC Aircraft": Column(sources.AIRCRAFT),
                "Cars196": Column(sources.CARS),
            },
            {
                "Qwen2-VL-2B": (56.0, 54.8, 66.4, 45.9, 56.8),
                "+ SFT": (55.6, 58.5, 55.5, 67.9, 40.5),
                "+ GRPO": (81.9, 71.4, 86.1, 74.8, 95.3),
                "+ GPG": (89.0, 79.3, 90.8, 88.5, 97.5),
            },
            run_per_column=True,
            note="the models of a row's columns are trained one by one: a run of ours fills one column",
        ),
        PaperTable(
            "T7",
            "GEOQA, Qwen2.5-VL-3B-Instruct",
            {"GEOQA": Column(sources.GEOQA_TEST)},
            {"Qwen2.5-VL-3B-Instruct": (35.41,), "+ GRPO": (47.48,), "+ GPG": (51.33,)},
            average=None,
            decimals=2,
        ),
    )
}
