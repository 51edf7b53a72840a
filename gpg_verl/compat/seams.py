"""Every place of veRL or vLLM that is patched is fetched through `seam`, which fails loudly when it has changed."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator

from gpg_verl.compat.versions import VERL


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
