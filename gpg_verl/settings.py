"""GPG's settings (`algorithm.gpg`), and how a run of GPG is told from others.

Imports neither torch nor veRL: the look before a run reads them, in every process that composes a config.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gpg_verl.algorithm import ALPHAS, F_NORMS

# veRL's V1 trainer modes and the names under which GPG's versions of them are registered. A name of its own means
# that a process without this package cannot answer with veRL's trainer: it stops with "Unknown trainer".
TRAINER_MODES = {mode: f"gpg_{mode}" for mode in ("sync", "colocate_async", "separate_async")}


def verls_mode(mode: str) -> str:
    """veRL's own name of a trainer mode, under which veRL keeps its settings."""
    return {ours: theirs for theirs, ours in TRAINER_MODES.items()}.get(mode, mode)


def is_gpg(config: DictConfig) -> bool:
    """Whether the run's estimator is GPG."""
    return OmegaConf.select(config, "algorithm.adv_estimator") == "gpg"


class SettingError(ValueError):
    """A setting of `algorithm.gpg` that is unknown or has a value that is not allowed."""


def _setting(default, accepts: Callable[[Any], bool], allowed: str, read: Callable = lambda value: value) -> Any:
    """A setting: which values it `accepts` (in words: `allowed`), and how one is read."""
    return field(default=default, metadata={"accepts": accepts, "allowed": allowed, "read": read})


def _one_of(default: str, allowed: tuple[str, ...]) -> Any:
    def read(value) -> str:  # YAML reads `f_norm=1` as a number
        return "1" if isinstance(value, float) and value == 1 else str(value)

    def accepts(value) -> bool:
        return not isinstance(value, bool) and read(value) in allowed

    return _setting(default, accepts, f"allowed are {' and '.join(allowed)}", read)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _share(default: float, zero: str) -> Any:
    def accepts(value) -> bool:
        return _is_number(value) and 0 <= value <= 1  # nan is not

    return _setting(default, accepts, f"a share from 0 ({zero}) to 1", float)


def _count(default: int) -> Any:
    return _setting(default, lambda value: type(value) is int and value >= 1, "a whole number from 1")


def _above_zero(allowed: str) -> Any:
    def accepts(value) -> bool:
        return value is None or (_is_number(value) and value > 0)

    return _setting(None, accepts, allowed, lambda value: None if value is None else float(value))


def _flag(default: bool) -> Any:
    return _setting(default, lambda value: isinstance(value, bool), "allowed are True and False")


@dataclass(frozen=True)
class GPGSettings:
    """The node `algorithm.gpg`, given on the command line as `+algorithm.gpg.key=value`.

    f_norm: F_norm, the divisor of the centred reward: `1` (the paper's choice) or `std` (its ablation).
    alpha: α, the correction for samples without gradient: `sample` is the paper's B/(B−M), `token` the same ratio
        counted in response tokens (what the token-mean loss divides by), `none` is α = 1.
    beta_th: β_th, the share of valid groups below which a step asks for more prompts; 0 is off.
    max_batches: with β_th, a step is content with what it has after this many batches of prompts.
    allow_kl: accept KL terms that GPG does not have; they bring the reference worker back.
    drop_truncated: leave responses that reached the maximum length out of the loss. They stay in their groups' means
        and in B, M and the denominators.
    drop_unscored: leave responses without a reward (the reward function raised, or returned no number) out of the batch
        and of their groups: neither the mean nor B nor a denominator counts them. By default one of them ends the run.
    max_skipped_steps: so many steps in a row may have no valid group before the run ends with a message.
    max_dropped_share: share of a data set's rows that veRL's filter may drop before the run ends with a message.
    max_failed_share: share of a step's sessions that may fail in the rollout, where more than one does, before the run
        ends with a message; 1 lets all fail.
    max_session_seconds: a session that has run so long is ended, as one that failed; None: never.
    max_rollout_gap: how far the rollout's log-probs may be from the trainer's when the run starts (root mean square, in
        nats); None: by the precision of the two.
    share_prefixes: compute what a group's rows have in common once, wherever that is exact.
    """

    f_norm: str = _one_of("1", F_NORMS)
    alpha: str = _one_of("sample", ALPHAS)
    beta_th: float = _share(0.0, "off")
    max_batches: int = _count(20)
    allow_kl: bool = _flag(False)
    drop_truncated: bool = _flag(False)
    drop_unscored: bool = _flag(False)
    max_skipped_steps: int = _count(20)
    max_dropped_share: float = _share(0.05, "none")
    max_failed_share: float = _share(0.1, "none")
    max_session_seconds: float | None = _above_zero("seconds above 0")
    max_rollout_gap: float | None = _above_zero("a difference of log-probs above 0, inf for any")
    share_prefixes: bool = _flag(True)

    @classmethod
    def from_node(cls, node: Mapping | None) -> GPGSettings:
        """Reads the node; raises SettingError with the full key, the value and the values allowed."""
        if node is None:
            return cls()
        if not isinstance(node, Mapping | DictConfig):
            raise SettingError(f"algorithm.gpg={node!r} is not a group of settings: use +algorithm.gpg.key=value")
        known = {setting.name: setting.metadata for setting in fields(cls)}
        for key, value in node.items():
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean algorithm.gpg.{close[0]}?" if close else ""
                raise SettingError(f"algorithm.gpg.{key} is unknown, known are {', '.join(known)}{hint}")
            if not known[key]["accepts"](value):
                raise SettingError(f"algorithm.gpg.{key}={value!r}: {known[key]['allowed']}")
        return cls(**{key: known[key]["read"](value) for key, value in node.items()})
