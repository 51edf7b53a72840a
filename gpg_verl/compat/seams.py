"""Every place of veRL or vLLM that is patched is fetched through `seam`, which fails loudly when it has changed."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gpg_verl.compat.versions import VERL

# What a mixin of ours derives from, for a type checker: the class of veRL's whose methods it replaces and calls.
# When it runs it derives from nothing, and is mixed in before that class.
if TYPE_CHECKING:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.workers.engine_workers import ActorRolloutRefWorker as ActorMixin

    from gpg_verl.settings import GPGSettings

    class TrainerMixin(PPOTrainer):
        settings: GPGSettings  # of who mixes it in
else:
    TrainerMixin = ActorMixin = object


def seam(owner, name: str, parameters: tuple[str, ...]) -> Callable:
    """The function `owner.name`, if it is there and takes the parameters that the patch was written for.

    Raises:
        RuntimeError: naming the place, what was expected and what was found.
    """
    where = owner.__name__ if inspect.ismodule(owner) else f"{owner.__module__}.{owner.__qualname__}"
    place = f"{where}.{name}"
    function = getattr(owner, name, None)
    if function is None:
        raise RuntimeError(f"{place} is gone: this version is not one that gpg_verl was written for (veRL{VERL})")
    found = tuple(inspect.signature(function).parameters)
    if found[: len(parameters)] != parameters:
        raise RuntimeError(
            f"{place} takes ({', '.join(found)}), gpg_verl was written for ({', '.join(parameters)}) (veRL{VERL})"
        )
    return function


@contextlib.contextmanager
def replaced(owner, name: str, ours) -> Iterator[None]:
    """While it lasts, `owner.name` is ours."""
    theirs = getattr(owner, name)
    setattr(owner, name, ours)
    try:
        yield
    finally:
        setattr(owner, name, theirs)
