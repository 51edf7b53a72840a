"""What a step did, for its metrics under `gpg/`: counts are sums over a step's local updates, over
which veRL averages metrics. Plain Python.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from gpg_verl.algorithm.advantage import GroupStatistics
from gpg_verl.algorithm.updates import Update

# Tokens in forward passes, those that rows share and that were not computed again, and the tokens after which the whole
# vocabulary was computed.
TOKENS = ("tokens_computed", "tokens_shared", "positions_scored")

ALWAYS = (
    *TOKENS,
    *("B", "M", "groups", "all_right_groups", "all_wrong_groups", "groups_of_one", "updates", "update_skipped"),
    *("rows_dropped", "tokens_dropped", "driver_seconds", "check_seconds"),
)


class StepMetrics:
    """Collects over the local updates of a step; `end` gives the metrics. `counts`: of `ALWAYS`, added up."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.alphas: list[float] = []
        self.by_source: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.observed: float | None = None

    def sampled(self, statistics: GroupStatistics, sources: Sequence[str] | None) -> None:
        """A batch with its group statistics; `sources`: (rows,) data_source, where there are several."""
        self.counts.update(
            B=statistics.B,
            M=statistics.M,
            groups=statistics.groups,
            all_right_groups=statistics.all_right,
            all_wrong_groups=statistics.all_wrong,
            groups_of_one=statistics.singletons,
        )
        self.alphas.append(statistics.alpha)
        rows = zip(sources or (), statistics.counted.tolist(), statistics.valid.tolist(), strict=sources is not None)
        for source, counted, valid in rows:
            self.by_source[source][0] += counted
            self.by_source[source][1] += valid

    def updated(
        self,
        updates: Sequence[Update],
        epochs: int,
        *,
        response_tokens: Sequence[int],
        sequence_tokens: Sequence[int],
        real: Sequence[int],
        observed: float | None,
        tokens: Mapping[str, int] | None = None,
    ) -> None:
        """The planned updates of a batch.

        Args:
            response_tokens, sequence_tokens: (rows,) of the response, and with its prompt.
            real: the rows that are not padding.
            observed: rows over which the agreement of trainer and rollout was measured.
            tokens: the numbers of `TOKENS`, counted where they were computed; None where rows were computed one by one,
                the vocabulary for every token.
        """
        rows = {i for update in updates for i in update.computed()}
        dropped = [i for i in real if i not in rows]
        computed = epochs * sum(sequence_tokens[i] for i in rows)
        self.counts.update(tokens or {"tokens_computed": computed, "positions_scored": computed})
        self.counts["updates"] += len(updates) * epochs
        self.counts["rows_dropped"] += len(dropped)
        self.counts["tokens_dropped"] += sum(response_tokens[i] for i in dropped)
        if observed is not None:
            self.observed = observed / len(real)

    def end(self) -> dict[str, float]:
        """The step's metrics."""
        metrics = {name: self.counts[name] for name in ALWAYS}
        metrics["alpha"] = sum(self.alphas) / len(self.alphas)
        metrics["valid_share"] = (metrics["B"] - metrics["M"]) / metrics["B"] if metrics["B"] else 0.0
        if self.observed is not None:
            metrics["metrics_row_share"] = self.observed
        for source, (counted, valid) in self.by_source.items():
            metrics[f"valid_share/{source}"] = valid / counted if counted else 0.0
        return {f"gpg/{name}": value for name, value in metrics.items()}


def keep_metrics(config: DictConfig) -> None:
    """Has veRL's file logger write metrics beside the checkpoints, a file for each start, whatever loggers the
    run has: `python -m gpg_verl.report` can show every run. A place that the user names stays.
    """
    trainer, folder = config.trainer, Path(config.trainer.default_local_dir).absolute()
    if not {"VERL_FILE_LOGGER_PATH", "VERL_FILE_LOGGER_ROOT"} & os.environ.keys():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            print(f"gpg_verl: {folder}: the run's metrics are not kept there ({error})", flush=True)
            return
        os.environ["VERL_FILE_LOGGER_PATH"] = str(folder / f"metrics-{time.time_ns()}.jsonl")
    loggers = [trainer.logger] if isinstance(trainer.logger, str) else trainer.logger
    trainer.logger = list(dict.fromkeys([*loggers, "file"]))
