"""Responses without a reward: found, and named with what should have scored them, their row and the error.

Where a reward function raises, veRL (0.9.1) trains on the group without that response, and only the log says so; where
it returns None, the step ends with `KeyError: rm_scores`. Here both, and whatever else is no number, become a NaN that
goes through veRL as a reward does. The trainer meets it in every mode, and decides.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import traceback
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import ray
import torch
from omegaconf import DictConfig
from verl.experimental.reward_loop import reward_loop
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.protocol import DataProto

from gpg_verl.compat.seams import replaced, seam

LARGEST = torch.finfo(torch.float32).max  # veRL keeps rewards in float32
SAID = 60  # characters of a value, in messages
LONGEST = 200  # of an error


class NoReward(RuntimeError):
    """Of responses without a reward."""


class RewardLoopWorkerChecked(RewardLoopWorker):
    """veRL's, with NaN for what is not scored; the first such response is printed and kept for who asks."""

    first_unscored: str | None = None

    def _init_reward_fn(self):
        super()._init_reward_fn()
        function = getattr(self.reward_manager, "compute_score", None)
        if function is not None and not inspect.iscoroutinefunction(function):
            self.reward_manager.compute_score = _without_stop_iteration(function)

    async def compute_score(self, data: DataProto) -> dict:
        try:
            result = await super().compute_score(data)
            score = result["reward_score"]
            if _is_number(score):
                return result
            error = f"{_short(repr(score), SAID)} is no number"
        except (Exception, SystemExit) as failure:
            error = _short(f"{type(failure).__name__}: {failure}", LONGEST)
            if self.first_unscored is None:
                traceback.print_exception(failure)
        if self.first_unscored is None:
            self.first_unscored = f"{scorer_of(self.config)} failed for the row with {row_of(data)}: {error}"
            print(f"gpg_verl: {self.first_unscored}", flush=True)
        return {"reward_score": math.nan, "reward_extra_info": {}}


def _without_stop_iteration(function):
    """A future takes no StopIteration: of one in its thread veRL's reward manager would never hear."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except StopIteration as error:
            raise RuntimeError("StopIteration") from error

    return call


def _short(text: str, characters: int) -> str:
    """In one line."""
    text = " ".join(text.split())
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def _is_number(score) -> bool:
    try:
        return math.fabs(score) <= LARGEST
    except (TypeError, ValueError, RuntimeError):  # the last two: arrays and tensors of several numbers
        return False


def scorer_of(config: DictConfig) -> str:
    """What scores a response."""
    reward = config.reward
    if reward.custom_reward_function.path is not None:
        return f"the reward function {reward.custom_reward_function.name} of {reward.custom_reward_function.path}"
    if reward.reward_model.enable:
        return f"the reward model {reward.reward_model.model_path}"
    return f"veRL's reward function (reward manager {reward.reward_manager.name})"


def row_of(data: DataProto) -> str:
    """The response's row of the data set, by what of it the reward was given."""
    row = {key: values[-1] for key, values in data.non_tensor_batch.items()}
    known = {"data_source": row.get("data_source")}
    for column, key in (("extra_info", "index"), ("reward_model", "ground_truth")):
        if isinstance(row.get(column), dict):
            known[f"{column}.{key}"] = row[column].get(key)
    if len(messages := row.get("raw_prompt", ())):
        known["prompt"] = messages[-1].get("content") if isinstance(messages[-1], dict) else messages[-1]
    known = {name: value.item() if isinstance(value, np.generic) else value for name, value in known.items()}
    said = [f"{name}={_short(repr(value), SAID)}" for name, value in known.items() if value is not None]
    return ", ".join(said)


@contextlib.contextmanager
def rewards_checked() -> Iterator[None]:
    """While it lasts, veRL's manager of reward workers starts checked ones.

    veRL has no seam for their class (0.9.1): the manager takes it from its module.
    """
    seam(RewardLoopWorker, "compute_score", ("self", "data"))
    with replaced(reward_loop, "RewardLoopWorker", RewardLoopWorkerChecked):
        yield


def first_unscored(workers: Iterable, seconds: float) -> str | None:
    """The first response without a reward that a worker tells of; None where none answers so in time."""
    asked = [worker.__ray_call__.remote(_make_question()) for worker in workers]
    for answer in ray.wait(asked, num_returns=len(asked), timeout=seconds)[0] if asked else ():
        with contextlib.suppress(ray.exceptions.RayError):
            if (said := ray.get(answer)) is not None:
                return said
    return None


def _make_question() -> Callable[[object], str | None]:
    """The question, as a function that Ray ships by value."""

    def question(worker) -> str | None:
        return worker.first_unscored

    return question
