"""GPG's settings (`algorithm.gpg`), and how a run of GPG is told from others.

Imports neither torch nor veRL: the look before a run reads them, in every process that composes a config.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
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

    f_norm: str = "1"
    alpha: str = "sample"
    beta_th: float = 0.0
    max_batches: int = 20
    allow_kl: bool = False
    drop_truncated: bool = False
    drop_unscored: bool = False
    max_skipped_steps: int = 20
    max_dropped_share: float = 0.05
    max_failed_share: float = 0.1
    max_session_seconds: float | None = None
    max_rollout_gap: float | None = None
    share_prefixes: bool = True

    @classmethod
    def from_node(cls, node: Mapping | None) -> GPGSettings:
        """Reads the node; raises SettingError with the full key, the value and the values allowed."""
        if node is None:
            return cls()
        if not isinstance(node, Mapping | DictConfig):
            raise SettingError(f"algorithm.gpg={node!r} is not a group of settings: use +algorithm.gpg.key=value")
        known = [field.name for field in fields(cls)]
        values: dict[str, Any] = {}
        for key in node:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean algorithm.gpg.{close[0]}?" if close else ""
                raise SettingError(f"algorithm.gpg.{key} is unknown, known are {', '.join(known)}{hint}")
            read, allowed = _READERS[key]
            try:
                values[key] = read(node[key])
            except ValueError:
                raise SettingError(f"algorithm.gpg.{key}={node[key]!r}: {allowed}") from None
        return cls(**values)


def _one_of(*allowed: str) -> tuple[Callable[[Any], str], str]:
    def read(value: Any) -> str:
        # YAML reads `f_norm=1` as a number.
        text = str(int(value)) if isinstance(value, float) and value == 1 else str(value)
        if isinstance(value, bool) or text not in allowed:
            raise ValueError
        return text

    return read, f"allowed are {' and '.join(allowed)}"


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    return float(value)


def _share(value: Any) -> float:
    if not 0 <= _number(value) <= 1:  # nan is not
        raise ValueError
    return float(value)


def _above_zero(value: Any) -> float | None:
    if value is not None and not _number(value) > 0:
        raise ValueError
    return None if value is None else float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


# Of each setting: a function that reads its value or raises ValueError, and what is allowed.
_READERS = {
    "f_norm": _one_of(*F_NORMS),
    "alpha": _one_of(*ALPHAS),
    "beta_th": (_share, "a share from 0 (off) to 1"),
    "max_batches": (_count, "a whole number from 1"),
    "allow_kl": (_flag, "allowed are True and False"),
    "drop_truncated": (_flag, "allowed are True and False"),
    "drop_unscored": (_flag, "allowed are True and False"),
    "max_skipped_steps": (_count, "a whole number from 1"),
    "max_dropped_share": (_share, "a share from 0 (none) to 1"),
    "max_failed_share": (_share, "a share from 0 (none) to 1"),
    "max_session_seconds": (_above_zero, "seconds above 0"),
    "max_rollout_gap": (_above_zero, "a difference of log-probs above 0, inf for any"),
    "share_prefixes": (_flag, "allowed are True and False"),
}
