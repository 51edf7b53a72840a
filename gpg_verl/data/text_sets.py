"""The text sets: one entry each, and the readers of their rows.

Field names: `problem` or `question`; `answer`, `final_answer`, or the boxed part of a `solution`; `level` ("Level 3")
or `difficulty` (3.0).
"""

from __future__ import annotations

import math
from decimal import Decimal

from gpg_verl.data import DataError
from gpg_verl.data.dataset import DataSet, Question, Row, Split, get_field, get_text
from reward_fns import extract, sources

GOLDS = ("gt_answer", "ground_truth_answer", "answer")  # simplelr's own names say more than `answer`


def read_gsm8k(row: Row) -> Question:
    """The gold is the number behind `####`, without thousands separators."""
    answer = get_field(row, "answer")
    _, mark, gold = str(answer).rpartition("####")
    if answer not in (None, "") and not mark:
        raise DataError(f"its answer is {answer!r:.60}, without the #### that stands before GSM8K's golds")
    return Question(get_text(row, "problem", "question"), [gold] if (gold := gold.replace(",", "").strip()) else [])


def read_math(row: Row) -> Question:
    """MATH and sets of its kind: the gold is the `answer`, or what the solution boxes."""
    own = row.get("input") if str(row.get("input") or "").strip() else None
    return Question(get_text(row, "problem", "question"), _golds(row), own, _level(row))


def read_olympiadbench(row: Row) -> Question:
    """`final_answer` holds one entry; several answers of one question stand in it side by side (`$1$,$2$`)."""
    golds = [gold.replace("$", "") for gold in _strings(row["final_answer"])] if "final_answer" in row else _golds(row)
    if row.get("unit") == "%":  # math-verify strips other units, but reads 4.2 and 4.2 % as two numbers
        golds += [rf"{gold}\%" for gold in golds]
    return Question(get_text(row, "problem", "question"), golds)


def _golds(row: Row) -> list[str]:
    for name in GOLDS:
        if golds := _strings(row.get(name)):
            return golds
    if isinstance(row.get("reward_model"), dict):  # data in veRL's format
        return _strings(row["reward_model"].get("ground_truth"))
    if "solution" in row:
        return _strings((extract.contents(str(row["solution"])) or [])[-1:])
    get_field(row, *GOLDS, "solution")  # one of them is there, and empty
    return []


def _strings(value: object) -> list[str]:
    """A gold, or a list of them, as text: 27.0 is 27; what is empty is left out, and so are repetitions."""
    values = value if isinstance(value, list) else [value]
    texts = [_written(v) if isinstance(v, float) else str(v).strip() for v in values if v is not None]
    return list(dict.fromkeys(filter(None, texts)))


def _written(value: float) -> str:
    """27.0 is 27, 1e-07 is 0.0000001, and what is no number is left out."""
    return f"{Decimal(repr(value)):f}".removesuffix(".0") if math.isfinite(value) else ""


def _level(row: Row) -> int | None:
    value = row.get("level", row.get("difficulty"))
    if isinstance(value, str) and value.startswith("Level "):
        return int(value[-1]) if value[-1].isdigit() else 0  # "Level 3", "Level ?"
    return int(value) if isinstance(value, int | float) else None


_ENTRIES = (
    DataSet(
        "gsm8k", "grade-school word problems", "openai/gsm8k", sources.GSM8K, "MIT",
        {"train": Split("train", (7_473,)), "test": Split("test", (1_319,))}, read_gsm8k, hub_config="main",
    ),
    DataSet(
        "math", "competition problems (T3), all levels or those of --level", "DigitalLearningGmbH/MATH-lighteval",
        sources.MATH, "MIT", {"train": Split("train", (7_500, 7_474))}, read_math,  # DeepScaleR's copy has 26 rows less
    ),
    DataSet(
        "math_lvl3to5", "MATH of levels 3 to 5, simplelr's setting (T2)", "hkust-nlp/SimpleRL-Zoo-Data",
        sources.SIMPLELR, "Apache-2.0 (MATH: MIT)",
        # simplelr's own 8,523 hold part of MATH's test split; the others are MATH train's
        {"train": Split("train", (8_523, 5_586, 5_563), file="simplelr_qwen_level3to5/train.parquet")},
        read_math, levels=(3, 4, 5),
    ),
    DataSet(
        "open-s1", "problems of s1's collection, filtered (T1, GPG-RS1)", "knoveleng/open-s1", sources.OPEN_S1, "MIT",
        {"train": Split("train", (18_615,))}, read_math,
    ),
    DataSet(
        "open-rs", "easy and hard problems mixed (T1, GPG-RS3)", "knoveleng/open-rs", sources.OPEN_RS, "MIT",
        {"train": Split("train", (7_000,))}, read_math,
    ),
    DataSet(
        "aime24", "AIME 2024, I and II", "HuggingFaceH4/aime_2024", sources.AIME24, "not stated",
        {"test": Split("train", (30,))}, read_math,
    ),
    DataSet(
        "math500", "500 problems of MATH's test split", "HuggingFaceH4/MATH-500", sources.MATH_500, "MIT",
        {"test": Split("test", (500,))}, read_math,
    ),
    DataSet(
        "amc23", "AMC 12 of 2023, the 40 rows of the paper (others have 83)", "math-ai/amc23", sources.AMC23,
        "not stated", {"test": Split("test", (40,))}, read_math,
    ),
    DataSet(
        "minerva", "undergraduate science, from MIT OpenCourseWare", "math-ai/minervamath", sources.MINERVA,
        "not stated", {"test": Split("test", (272,))}, read_math,
    ),
    DataSet(
        "olympiadbench", "olympiad problems in English, text only",
        "knoveleng/OlympiadBench",  # the 675 rows of the paper, which the original does not have as a set
        sources.OLYMPIADBENCH, "Apache-2.0 (original)", {"test": Split("train", (675,))}, read_olympiadbench,
    ),
)  # fmt: skip

TEXT_SETS = {entry.name: entry for entry in _ENTRIES}
