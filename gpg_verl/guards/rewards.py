"""Rewards as Python's numbers, and responses without one: found, and named with what should have scored them.

Any finite number is a reward: veRL (0.9.1) loses a session for numpy's float32. What is none, or raises, becomes a NaN
that goes through veRL as a reward does, and the trainer decides.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import traceback
from collections.abc import Iterable, Iterator

import ray
import torch
from omegaconf import DictConfig
from verl.experimental.reward_loop import reward_loop
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.protocol import DataProto

from gpg_verl.compat.seams import replaced, seam

LARGEST = torch.finfo(torch.float32).max  # veRL keeps rewards in float32
MAX_VALUE_CHARS = 60  # characters of a value, in messages
MAX_ERROR_CHARS = 200  # of an error


class NoReward(RuntimeError):
    """Of responses without a reward."""


def plain(value):
    """A number of numpy, torch, fractions or decimal as Python's own; anything else as it is."""
    with contextlib.suppress(TypeError, ValueError, RuntimeError, OverflowError):
        number = value.item() if hasattr(value, "item") else value  # of an array or tensor; of several numbers raises
        return number if isinstance(number, int) or not hasattr(number, "__float__") else float(number)
    return value


def plain_result(result):
    """What a reward function returned, a number or a dict, with `plain` numbers: veRL's managers calculate with it."""
    return {key: plain(value) for key, value in result.items()} if isinstance(result, dict) else plain(result)


def without_mean(values: Iterable) -> str | None:
    """The types that stand against a mean of `values`; None for numbers, and for texts, of which veRL takes none."""
    known = (value for value in values if value is not None)  # None: of responses that lack it
    kinds = {"number" if isinstance(plain(value), int | float) else type(value).__name__ for value in known}
    return None if len(kinds) < 2 and kinds <= {"number", "str"} else " and ".join(sorted(kinds))


class RewardLoopWorkerChecked(RewardLoopWorker):
    """veRL's, with NaN for what is not scored; the first such response is printed and kept for who asks."""

    first_unscored: str | None = None

    def _init_reward_fn(self):
        super()._init_reward_fn()
        if (function := getattr(self.reward_manager, "compute_score", None)) is not None:
            self.reward_manager.compute_score = _with_plain_result(function)

    async def compute_score(self, data: DataProto) -> dict:
        try:
            result = await super().compute_score(data)
            score = plain(result["reward_score"])
            if isinstance(score, int | float) and abs(score) <= LARGEST:
                extra_info = plain_result(result.get("reward_extra_info", {}))
                return {**result, "reward_score": float(score), "reward_extra_info": extra_info}
            error = f"{_short(repr(score), MAX_VALUE_CHARS)} is no number"
        except (Exception, SystemExit) as failure:
            error = _short(f"{type(failure).__name__}: {failure}", MAX_ERROR_CHARS)
            if self.first_unscored is None:
                traceback.print_exception(failure)
        if self.first_unscored is None:
            self.first_unscored = f"{scorer_of(self.config)} failed for the row with {row_of(data)}: {error}"
            print(f"gpg_verl: {self.first_unscored}", flush=True)
        return {"reward_score": math.nan, "reward_extra_info": {}}


def _with_plain_result(function):
    """The reward function with plain numbers in its result, and of the kind, awaited or not, that it is."""

    async def awaited(*args, **kwargs):
        return plain_result(await function(*args, **kwargs))

    def call(*args, **kwargs):
        try:
            return plain_result(function(*args, **kwargs))
        except StopIteration as error:
            # A future takes none: of one in its thread veRL's reward manager would never hear.
            raise RuntimeError("StopIteration") from error

    return functools.wraps(function)(awaited if inspect.iscoroutinefunction(function) else call)


def _short(text: str, characters: int) -> str:
    """In one line."""
    text = " ".join(text.split())
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


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
    return ", ".join(
        f"{name}={_short(repr(plain(value)), MAX_VALUE_CHARS)}" for name, value in known.items() if value is not None
    )


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
    asked = [worker.__ray_call__.remote(lambda worker: worker.first_unscored) for worker in workers]
    for answer in ray.wait(asked, num_returns=len(asked), timeout=seconds)[0] if asked else ():
        with contextlib.suppress(ray.exceptions.RayError):
            if (said := ray.get(answer)) is not None:
                return said
    return None
