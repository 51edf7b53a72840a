"""What a step did, for its metrics under `gpg/` (design invariant 5). Plain Python.

In `separate_async` a step has several local updates, over which veRL averages metrics; counts are sums here.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from gpg_verl.algorithm.updates import Update

# Work of an update over that of one forward pass, in tokens: forward and backward, which costs twice; checkpointing
# runs the forward once more.
UPDATE_OVER_FORWARD = {False: 3, True: 4}


class StepMetrics:
    """Collects over the local updates of a step; `end` gives the metrics.

    Args:
        forward_saved: whether a forward pass over the whole batch is not run.
        checkpointing: whether the actor uses gradient checkpointing.
    """

    def __init__(self, *, forward_saved: bool, checkpointing: bool):
        self.forward_saved = forward_saved
        self.update_over_forward = UPDATE_OVER_FORWARD[checkpointing]

    def begin(self) -> None:
        self.counts: Counter[str] = Counter()
        self.alpha = 0.0
        self.by_source: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.observed = None

    def sampled(self, statistics, sources: Sequence[str] | None) -> None:
        """A batch with its group statistics; `sources`: (rows,) data_source, where there are several."""
        self.counts.update(
            {
                "B": statistics.B,
                "M": statistics.M,
                "groups": statistics.groups,
                "all_right_groups": statistics.all_right,
                "all_wrong_groups": statistics.all_wrong,
                "groups_of_one": statistics.singletons,
                "batches": 1,
            }
        )
        self.alpha += statistics.alpha
        if sources is not None:
            for source, counted, valid in zip(
                sources, statistics.counted.tolist(), statistics.valid.tolist(), strict=True
            ):
                self.by_source[source][0] += counted
                self.by_source[source][1] += valid

    def skipped(self) -> None:
        self.counts["update_skipped"] += 1

    def updated_by_verl(self) -> None:
        """veRL's own update, over all rows."""
        self.counts["updates"] += 1

    def updated(
        self,
        updates: Sequence[Update],
        epochs: int,
        *,
        response_tokens: Sequence[int],
        sequence_tokens: Sequence[int],
        real: Sequence[int],
        seconds: float,
        observed: float | None,
        tokens: Mapping[str, int] | None = None,
        check_seconds: float = 0.0,
    ) -> None:
        """The planned updates of a batch.

        Args:
            response_tokens, sequence_tokens: (rows,) of the response, and with its prompt.
            real: the rows that are not padding.
            seconds: what the updates took.
            observed: rows over which the agreement of trainer and rollout was measured.
            tokens: the numbers of `TOKENS`, counted where they were computed; None where rows were computed one by one.
            check_seconds: what it took to check their passes on rows of the batch (training/self_check.py).
        """
        rows = {i for update in updates for i in update.computed()}
        dropped = [i for i in real if i not in rows]
        computed, whole = (epochs * sum(sequence_tokens[i] for i in x) for x in (rows, real))
        # One by one, the vocabulary is computed for every token.
        tokens = tokens or {"tokens_computed": computed, "tokens_shared": 0, "positions_scored": computed}
        computed = tokens["tokens_computed"]
        self.counts.update(tokens)
        saved = seconds * (whole / computed - 1)
        if self.forward_saved:
            saved += seconds * whole / computed / self.update_over_forward
        self.counts.update(
            {
                "updates": len(updates) * epochs,
                "rows_dropped": len(dropped),
                "tokens_dropped": sum(response_tokens[i] for i in dropped),
                "saved_seconds": saved,
                "check_seconds": check_seconds,
            }
        )
        if observed is not None:
            self.observed = observed / len(real)

    def driver_seconds(self, seconds: float) -> None:
        """Time that the trainer process spent on GPG's own statistics, selection and bookkeeping."""
        self.counts["driver_seconds"] += seconds

    def end(self) -> dict[str, float]:
        """The step's metrics."""
        c = self.counts
        metrics = {name: c[name] for name in ALWAYS}
        metrics["alpha"] = self.alpha / c["batches"]
        metrics["valid_share"] = (c["B"] - c["M"]) / c["B"] if c["B"] else 0.0
        if self.observed is not None:
            metrics["metrics_row_share"] = self.observed
        for source, (counted, valid) in self.by_source.items():
            metrics[f"valid_share/{source}"] = valid / counted if counted else 0.0
        return {f"gpg/{name}": value for name, value in metrics.items()}


# Tokens in forward passes, those that rows share and that were not computed again, and the tokens after which the whole
# vocabulary was computed.
TOKENS = ("tokens_computed", "tokens_shared", "positions_scored")

ALWAYS = (
    *TOKENS,
    *("B", "M", "groups", "all_right_groups", "all_wrong_groups", "groups_of_one", "updates", "update_skipped"),
    *("rows_dropped", "tokens_dropped", "saved_seconds", "driver_seconds", "check_seconds"),
)


def keep_metrics(config: DictConfig) -> None:
    """Has veRL's file logger write metrics beside the checkpoints, a file for each start, whatever loggers the
    run has: `python -m gpg_verl.report` can show every run. A place that the user names stays.
    """
    trainer, folder = config.trainer, Path(config.trainer.default_local_dir).absolute()
    loggers = [trainer.logger] if isinstance(trainer.logger, str) else list(trainer.logger)
    if not {"VERL_FILE_LOGGER_PATH", "VERL_FILE_LOGGER_ROOT"} & os.environ.keys():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            print(f"gpg_verl: {folder}: the run's metrics are not kept there ({error})", flush=True)
            return
        os.environ["VERL_FILE_LOGGER_PATH"] = str(folder / f"metrics-{time.time_ns()}.jsonl")
    trainer.logger = list(dict.fromkeys([*loggers, "file"]))
