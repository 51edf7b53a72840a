"""`compute_score`, as veRL calls it for every answer, from several threads at once."""

import difflib
import json
import logging
import threading
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from reward_fns import extract
from reward_fns.cosine import cosine
from reward_fns.format import STYLES
from reward_fns.sources import Task, task_of
from reward_fns.verdict import Killed, UnparsableGold, Verdict

logger = logging.getLogger("reward_fns")

# veRL passes these to reward functions: when a reward model runs beside it, and where a sandbox runs code.
_FROM_VERL = (
    "reward_router_address", "reward_model_tokenizer", "sandbox_fusion_url", "concurrent_semaphore", "memory_limit_mb",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What `reward.custom_reward_function.reward_kwargs` may set.

    accuracy, cosine, format: weights in place of the data source's own.
    format_style: a name in format.STYLES, in place of the data source's own.
    cosine_max_len: characters at which the cosine reward is lowest.
    cosine_published: let it rise again beyond that, as the public code does.
    last_number: GSM8K: take the text's last number where it has neither `####` nor a box.
    verify_timeout: processor seconds for one verification; None: GPG_VERIFY_TIMEOUT, or 5.
    compare_units: `3 hours` is wrong for `3 days`; a missing unit never makes an answer wrong.
    percent_as_fraction: mathematics: `50%` is right for `0.5`, as it is for `50`.
    unevaluated: mathematics: a sum, product, integral or limit that is left standing counts by its value.
    boxes_in_thinking: mathematics: an answer within the thinking counts where nothing follows it.
    last_formula: mathematics: without any other answer the last formula of the text counts, or its last number.
    small_letters: `b` is right for option `B`.
    """

    accuracy: float | None = None
    cosine: float | None = None
    format: float | None = None
    format_style: str | None = None
    cosine_max_len: int = 1000
    cosine_published: bool = False
    last_number: bool = False
    verify_timeout: float | None = None
    compare_units: bool = True
    percent_as_fraction: bool = True
    unevaluated: bool = True
    boxes_in_thinking: bool = False
    last_formula: bool = False
    small_letters: bool = False

    def __post_init__(self):
        for name, value in vars(self).items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name in ("cosine_max_len", "verify_timeout"):
                fits, expected = value is None or (is_number and 0 < value < float("inf")), "expected a number above 0"
            elif name in ("accuracy", "cosine", "format"):
                fits, expected = value is None or is_number, "expected a weight, a number"
            elif name == "format_style":
                fits, expected = value is None or value in STYLES, f"known are {', '.join(STYLES)}"
            else:
                fits, expected = isinstance(value, bool), "allowed are True and False"
            if not fits:
                raise ValueError(f"reward_kwargs.{name}={value!r}: {expected}")


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **kwargs
) -> dict[str, float | str]:
    """Scores one answer.

    Args:
        data_source: a name in sources.TASKS; raises UnknownDataSource for any other.
        solution_str: the model's text. Nothing in it makes this raise, hang or run code.
        ground_truth: the gold answer, or a list of accepted ones: text, numbers, bytes or numpy's.
        extra_info: the row's own, a dict or its JSON text; `index` or `id` names the row in warnings, `truncated` says
            whether it was cut.
        **kwargs: Settings by name.

    Returns the same keys for every row, numbers but for `pred`, `data_source` and `row`:
        score: the reward.
        acc: 1 if the answer is right.
        format: 1 if the text has the data source's format, whatever its weight.
        pred: the extracted answer.
        truncated: 1 if the text was cut. Where `extra_info` does not say it (veRL's own reward managers hand on no
            length): 1 if the text stops within a box, the thinking or the answer tags.
        killed: 1 if verification exceeded its bounds on time or memory, or crashed; the score is 0.
        gold_unparsable: 1 if the gold answer cannot be read; the score is 0.
        box_iou: intersection over union of boxes; 0 for other kinds.
        data_source: as given; veRL's dumps of answers (`trainer.validation_data_dir`) do not say it otherwise.
        row: the row's `id`, `unique_id` or `index` in `extra_info`, for the same reason; "" if it has none.
    """
    task = task_of(data_source)
    for name in _FROM_VERL:
        kwargs.pop(name, None)
    settings = _settings(tuple(kwargs.items()))
    text = solution_str.decode("utf-8", "replace") if isinstance(solution_str, bytes) else str(solution_str or "")
    extra_info = parse_extra_info(extra_info)
    cut = extra_info.get("truncated")
    killed = unparsable = False
    try:
        verdict = task.judge(text, ground_truth, settings)
    except Killed:
        killed, verdict = True, Verdict(False)
    except UnparsableGold as error:
        unparsable, verdict = True, Verdict(False)
        _report_once(data_source, extra_info, error)
    shaped = STYLES[settings.format_style or task.format_style](text)
    return {
        "score": 0.0 if killed or unparsable else _score(task, settings, verdict, shaped, len(text)),
        "acc": float(verdict.right),
        "format": float(shaped),
        "pred": extract.showable(verdict.pred),
        "truncated": float(extract.looks_cut(text) if cut is None else bool(cut)),
        "killed": float(killed),
        "gold_unparsable": float(unparsable),
        "box_iou": verdict.box_iou,
        "data_source": str(data_source),
        "row": row_name(extra_info),
    }


def parse_extra_info(extra_info: Any) -> dict:
    """A row's `extra_info` as a dict, however it is brought: numpy's, JSON text, nothing; {} for anything else."""
    if hasattr(extra_info, "tolist"):
        extra_info = extra_info.tolist()
    if isinstance(extra_info, str | bytes):
        try:
            extra_info = json.loads(extra_info)
        except ValueError:
            return {}
    return extra_info if isinstance(extra_info, dict) else {}


def _score(task: Task, settings: Settings, verdict: Verdict, shaped: bool, length: int) -> float:
    weight = {
        name: getattr(task, name) if getattr(settings, name) is None else getattr(settings, name)
        for name in ("accuracy", "cosine", "format")
    }
    score = weight["accuracy"] * (verdict.right if verdict.reward is None else verdict.reward)
    if weight["cosine"]:
        score += weight["cosine"] * cosine(verdict.right, length, settings.cosine_max_len, settings.cosine_published)
    return float(score + weight["format"] * shaped)


@lru_cache(maxsize=64)
def _settings(items: tuple[tuple[str, Any], ...]) -> Settings:
    known = [field.name for field in fields(Settings)]
    for name, _ in items:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"reward_kwargs.{name} is unknown, known are {', '.join(known)}"
                + (f"; did you mean {close[0]}?" if close else "")
            )
    return Settings(**dict(items))


_reported: set[tuple[str, str]] = set()
_reported_lock = threading.Lock()


def _report_once(data_source: str, extra_info: dict, error: UnparsableGold) -> None:
    row = row_name(extra_info)
    item = (data_source, row or str(error))
    with _reported_lock:
        if item in _reported:
            return
        _reported.add(item)
    named = f"row {row}" if row else "(a row without extra_info.index or id)"
    logger.warning(
        f"the gold answer of {data_source} {named} cannot be parsed: {error!s:.200}. Every answer to it scores 0; "
        "`python -m reward_fns audit FILE` lists all such rows of a file"
    )


def row_name(extra_info: dict) -> str:
    """How a row calls itself: its `id`, `unique_id` or `index`; "" if it has none."""
    named = (extra_info.get(key) for key in ("id", "unique_id", "index"))
    return next((str(value) for value in named if value is not None), "")
