"""The text sets: one entry each, and the readers of their rows.

Field names: `problem` or `question`; `answer`, `final_answer`, or the boxed part of a `solution`; `level` ("Level 3")
or `difficulty` (3.0).
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

from gpg_verl.data import DataError
from gpg_verl.data.dataset import DataSet, Question, Row, Split, get_field, get_text
from reward_fns import sources

GOLDS = ("gt_answer", "ground_truth_answer", "answer")  # simplelr's own names say more than `answer`


def boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...} or \fbox{...} of a text, or behind a `\boxed ` without braces."""
    marks = list(re.finditer(r"\\(?:boxed|fbox)\s*", text))
    if not marks:
        return None
    rest = text[marks[-1].end() :]
    if not rest.startswith("{"):
        return re.split(r"[\s$.,]", rest, maxsplit=1)[0]
    depth = 0
    for i, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:i]
    return None


def read_gsm8k(row: Row) -> Question:
    """The gold is the number behind `####`, without thousands separators."""
    answer = get_field(row, "answer")
    _, mark, gold = str(answer).rpartition("####")
    if answer not in (None, "") and not mark:
        raise DataError(f"its answer is {answer!r:.60}, without the #### that stands before GSM8K's golds")
    return Question(get_text(row, "problem", "question"), [gold] if (gold := gold.replace(",", "").strip()) else [])


def read_math(row: Row) -> Question:
    """MATH and sets of its kind: the gold is the `answer`, or what the solution boxes."""
    return Question(get_text(row, "problem", "question"), _golds(row), _own_prompt(row), _level(row))


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
        return _strings(boxed(str(row["solution"])))
    get_field(row, *GOLDS, "solution")  # one of them is there, and empty
    return []


def _strings(value: object) -> list[str]:
    """A gold, or a list of them, as text: 27.0 is 27; what is empty is left out, and so are repetitions."""
    values = value if isinstance(value, list) else [value]
    values = [_written(v) if isinstance(v, float) else v for v in values]
    texts = ["" if v is None else str(v).strip() for v in values]
    return list(dict.fromkeys(text for text in texts if text))


def _written(value: float) -> str:
    """27.0 is 27, 1e-07 is 0.0000001, and what is no number is left out."""
    if not math.isfinite(value):
        return ""
    return str(int(value)) if value.is_integer() else format(Decimal(repr(value)), "f")


def _own_prompt(row: Row) -> str | None:
    own = row.get("input")
    return own if isinstance(own, str) and own.strip() else None


def _level(row: Row) -> int | None:
    value = row.get("level", row.get("difficulty"))
    if isinstance(value, str) and value.startswith("Level "):
        return int(value[-1]) if value[-1].isdigit() else 0  # "Level 3", "Level ?"
    return int(value) if isinstance(value, int | float) else None


TEXT_SETS = {
    entry.name: entry
    for entry in (
        DataSet(
            name="gsm8k",
            about="grade-school word problems",
            hub_id="openai/gsm8k",
            hub_config="main",
            data_source=sources.GSM8K,
            licence="MIT",
            splits={"train": Split("train", (7_473,)), "test": Split("test", (1_319,))},
            read=read_gsm8k,
        ),
        DataSet(
            name="math",
            about="competition problems (T3), all levels or those of --level",
            hub_id="DigitalLearningGmbH/MATH-lighteval",
            data_source=sources.MATH,
            licence="MIT",
            splits={"train": Split("train", (7_500, 7_474))},  # DeepScaleR's copy has 26 rows less
            read=read_math,
        ),
        DataSet(
            name="math_lvl3to5",
            about="MATH of levels 3 to 5, simplelr's setting (T2)",
            hub_id="hkust-nlp/SimpleRL-Zoo-Data",
            data_source=sources.SIMPLELR,
            licence="Apache-2.0 (MATH: MIT)",
            # simplelr's own 8,523 hold part of MATH's test split; the others are MATH train's
            splits={"train": Split("train", (8_523, 5_586, 5_563), file="simplelr_qwen_level3to5/train.parquet")},
            read=read_math,
            levels=(3, 4, 5),
        ),
        DataSet(
            name="open-s1",
            about="problems of s1's collection, filtered (T1, GPG-RS1)",
            hub_id="knoveleng/open-s1",
            data_source=sources.OPEN_S1,
            licence="MIT",
            splits={"train": Split("train", (18_615,))},
            read=read_math,
        ),
        DataSet(
            name="open-rs",
            about="easy and hard problems mixed (T1, GPG-RS3)",
            hub_id="knoveleng/open-rs",
            data_source=sources.OPEN_RS,
            licence="MIT",
            splits={"train": Split("train", (7_000,))},
            read=read_math,
        ),
        DataSet(
            name="aime24",
            about="AIME 2024, I and II",
            hub_id="HuggingFaceH4/aime_2024",
            data_source=sources.AIME24,
            licence="not stated",
            splits={"test": Split("train", (30,))},
            read=read_math,
        ),
        DataSet(
            name="math500",
            about="500 problems of MATH's test split",
            hub_id="HuggingFaceH4/MATH-500",
            data_source=sources.MATH_500,
            licence="MIT",
            splits={"test": Split("test", (500,))},
            read=read_math,
        ),
        DataSet(
            name="amc23",
            about="AMC 12 of 2023, the 40 rows of the paper (others have 83)",
            hub_id="math-ai/amc23",
            data_source=sources.AMC23,
            licence="not stated",
            splits={"test": Split("test", (40,))},
            read=read_math,
        ),
        DataSet(
            name="minerva",
            about="undergraduate science, from MIT OpenCourseWare",
            hub_id="math-ai/minervamath",
            data_source=sources.MINERVA,
            licence="not stated",
            splits={"test": Split("test", (272,))},
            read=read_math,
        ),
        DataSet(
            name="olympiadbench",
            about="olympiad problems in English, text only",
            hub_id="knoveleng/OlympiadBench",  # the 675 rows of the paper, which the original does not have as a set
            data_source=sources.OLYMPIADBENCH,
            licence="Apache-2.0 (original)",
            splits={"test": Split("train", (675,))},
            read=read_olympiadbench,
        ),
    )
}
