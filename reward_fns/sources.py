"""Which data source is scored how: the one table.

Names are veRL's own where it has one, else the Hugging Face hub's; data tools write them into `data_source`. LISA's
authors have it on no hub: its name is their repository's. Evaluation by part needs one name a part, behind a slash.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from reward_fns import box, choice, classname, expression, gsm8k, tagged_number
from reward_fns.verdict import Verdict

GSM8K = "openai/gsm8k"
MATH = "DigitalLearningGmbH/MATH-lighteval"
MATH_500 = "HuggingFaceH4/MATH-500"
OPEN_S1 = "knoveleng/open-s1"
OPEN_RS = "knoveleng/open-rs"
SIMPLELR = "hkust-nlp/SimpleRL-Zoo-Data"
AIME24 = "HuggingFaceH4/aime_2024"
AMC23 = "math-ai/amc23"  # 40 questions; AI-MO's has 83
AMC_83 = "AI-MO/aimo-validation-amc"
MINERVA = "math-ai/minervamath"
OLYMPIADBENCH = "Hothan/OlympiadBench"
SAT = "array/SAT"
CV_BENCH = "nyu-visionx/CV-Bench"
CV_BENCH_TASKS = ("Count", "Relation", "Depth", "Distance")  # one data source each: CV_BENCH/Count, ...
LISA = "dvlab-research/LISA"
LISA_VAL = f"{LISA}/val"
LISA_TEST = f"{LISA}/test"
FLOWERS = "laolao77/ViRFT_CLS_flower_4_shot"
PETS = "laolao77/ViRFT_CLS_pets37_4shot"
AIRCRAFT = "laolao77/ViRFT_CLS_fgvc_aircraft_4_shot"
CARS = "laolao77/ViRFT_CLS_car196_4shot"
GEOQA_TRAIN = "leonardPKU/GEOQA_R1V_Train_8K"
GEOQA_TEST = "Luckyjhg/Geo170K"


@dataclass(frozen=True)
class Task:
    """How a data source is scored: score = accuracy · judge + cosine · length-aware accuracy + format · format.

    judge(text, gold, settings): the Verdict on a model's text; raises UnparsableGold.
    check_gold(gold, settings): raises UnparsableGold; None if every gold answer will do.
    accuracy, cosine, format: the weights, which `reward_kwargs` of the same names override.
    format_style: a name in format.STYLES.
    """

    judge: Callable[[str, object, object], Verdict]
    check_gold: Callable[[object, object], None] | None = None
    accuracy: float = 1.0
    cosine: float = 0.0
    format: float = 0.0
    format_style: str = "think_answer_lines"


_MATH = Task(expression.judge, expression.check_gold)
_T1 = Task(expression.judge, expression.check_gold, accuracy=0, cosine=2, format=1, format_style="think_line")
_CHOICE = Task(choice.judge, choice.check_gold, format=1, format_style="think_answer_opened")
_CLASS = Task(classname.judge, classname.check_gold, format=1, format_style="think_answer")
_BOX = Task(box.judge, box.check_gold, format=1, format_style="think_answer")
_NUMBER = Task(tagged_number.judge, tagged_number.check_gold, format=1, format_style="think_answer")

TASKS: dict[str, Task] = {
    GSM8K: Task(gsm8k.judge, gsm8k.check_gold),
    **dict.fromkeys((OPEN_S1, OPEN_RS), _T1),
    **dict.fromkeys((MATH, MATH_500, SIMPLELR, AIME24, AMC23, AMC_83, MINERVA, OLYMPIADBENCH), _MATH),
    # Other names under which veRL knows mathematics. Every name that begins with "aime" is scored as "aime" is.
    **dict.fromkeys(("lighteval/MATH", "math", "math_dapo", "math_dapo_reasoning", "aime"), _MATH),
    **dict.fromkeys(("numina_aops_forum", "numina_synthetic_math", "numina_amc_aime", "numina_synthetic_amc"), _MATH),
    **dict.fromkeys(("numina_cn_k12", "numina_olympiads"), _MATH),
    **dict.fromkeys((SAT, CV_BENCH, *(f"{CV_BENCH}/{task}" for task in CV_BENCH_TASKS)), _CHOICE),
    **dict.fromkeys((LISA, LISA_VAL, LISA_TEST), _BOX),
    **dict.fromkeys((FLOWERS, PETS, AIRCRAFT, CARS), _CLASS),
    **dict.fromkeys((GEOQA_TRAIN, GEOQA_TEST), _NUMBER),
}


class UnknownDataSource(ValueError):
    """A row's `data_source` that is not in the table."""


def register(data_source: str, judge, check_gold=None, **weights) -> None:
    """Adds a data source of your own, or replaces one: `register("me/my-data", judge, format=1)`."""
    TASKS[data_source] = Task(judge, check_gold, **weights)


def task_of(data_source: str) -> Task:
    """The table's entry; raises UnknownDataSource, which says what is known and how to add one."""
    if isinstance(data_source, bytes):
        data_source = data_source.decode("utf-8", "replace")
    task = TASKS.get(data_source) if isinstance(data_source, str) else None
    if task is None and str(data_source).startswith("aime"):
        task = TASKS["aime"]
    if task is None:
        close = difflib.get_close_matches(str(data_source), TASKS, n=1)
        raise UnknownDataSource(
            f"data_source={data_source!r} is unknown to reward_fns"
            + (f"; did you mean {close[0]!r}?" if close else "")
            + f". Known are: {', '.join(TASKS)}. To add one, call reward_fns.register({data_source!r}, judge) in a "
            "file of yours that imports compute_score from reward_fns, and name it as "
            "reward.custom_reward_function.path (docs/rewards.md). veRL's own scorers: "
            "reward.custom_reward_function.path=pkg://verl.utils.reward_score "
            "reward.custom_reward_function.name=default_compute_score"
        )
    return task
