"""Rows that veRL's data filter drops: counted, explained, and an error above a share.

`data.filter_overlong_prompts` drops prompts that are too long, and rows that could not be processed, say because a
package is missing; veRL names no count, and `datasets` keeps the result on disk, also when the cause is gone.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import datasets
from verl.utils.dataset.rl_dataset import RLHFDataset

from gpg_verl.compat.seams import replaced, seam

LOOKED_AT = 8  # of the dropped rows, to tell why
TOO_LONG = "too long"
FITS = "fits"  # now, whatever the filter said when its result was kept


@contextlib.contextmanager
def filter_watched(max_share: float, key: str) -> Iterator[None]:
    """While it lasts, veRL's data sets print what their filter drops, and raise if that is more than `max_share`, which
    the setting `key` gives. veRL (0.9.1) has no seam between reading a data set and using it.
    """
    verls = seam(RLHFDataset, "maybe_filter_out_long_prompts", ("self", "dataframe"))

    def watched(self, dataframe=None):
        kept = verls(self, dataframe)
        if not self.filter_overlong_prompts:
            return kept
        if FITS in (why := _why(verls, self, dataframe, kept)):
            _forget(dataframe, kept)
            kept = verls(self, dataframe)
            why = _why(verls, self, dataframe, kept)
        if set(why) - {TOO_LONG}:
            _forget(dataframe, kept)  # not to be believed once the cause is gone
        _judge(self, len(dataframe), len(dataframe) - len(kept), why, max_share, key)
        return kept

    with replaced(RLHFDataset, "maybe_filter_out_long_prompts", watched):
        yield


def _judge(data_set: RLHFDataset, rows: int, dropped: int, why: Counter, max_share: float, key: str) -> None:
    files = ", ".join(str(file) for file in data_set.original_data_files)
    count = f"{dropped} of {rows} rows ({dropped / rows:.1%})" if rows else "0 of 0 rows"
    reasons = "".join(f"; of {why.total()} looked at, {n} {reason}" for reason, n in why.most_common())
    reasons = reasons.replace(TOO_LONG, f"longer than data.max_prompt_length={data_set.max_prompt_length} tokens")
    print(f"gpg_verl: {files}: {count} dropped by veRL's filter{reasons}", flush=True)
    if not dropped or (dropped < rows and dropped / rows <= max_share):
        return
    fixes = ["raise data.max_prompt_length"] if TOO_LONG in why else []
    fixes += ["repair what they could not be processed for"] if set(why) - {TOO_LONG} else []
    if any("qwen_vl_utils" in reason for reason in why):
        fixes.append("pip install qwen_vl_utils")
    if dropped < rows:
        fixes.append(f"if they are to be left out, set +{key}={dropped / rows:.2g} or more")
    raise RuntimeError(
        f"{files}: veRL's filter dropped {count}{reasons}. Allowed is a share of {max_share:g} "
        f"({key}). To fix it: {'; '.join(fixes)}"
    )


def _why(verls, data_set: RLHFDataset, before: datasets.Dataset, kept: datasets.Dataset) -> Counter:
    """How often which reason was found in dropped rows, looked at one by one: {} if none was dropped."""
    # `datasets` keeps a selection as positions in the table below; the public way, a column of numbers, would rewrite
    # the images.
    positions = range(len(before)) if before._indices is None else before._indices.column(0).to_pylist()
    left = set(positions if kept is before or kept._indices is None else kept._indices.column(0).to_pylist())
    dropped = [row for row, position in enumerate(positions) if position not in left]
    alone = copy.copy(data_set)
    alone.num_workers = None  # in this process
    return Counter(_reason(verls, alone, before, row) for row in dropped[:: max(1, len(dropped) // LOOKED_AT)])


def _reason(verls, data_set: RLHFDataset, before: datasets.Dataset, row: int) -> str:
    """Filters the row alone and reads what veRL prints, its only trace of an error."""
    one, printed = datasets.Dataset.from_list([before[row]], features=before.features), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        fits = len(verls(data_set, one))
    _, failed, trace = printed.getvalue().partition("Traceback (most recent call last):\n")
    if failed:
        error = next((line for line in trace.splitlines() if line and not line.startswith(" ")), "")
        return f"could not be processed: {error[:200]}"
    return FITS if fits else TOO_LONG


def _forget(before: datasets.Dataset, kept: datasets.Dataset) -> None:
    """Removes the filter's result from the disk."""
    known = {file["filename"] for file in before.cache_files}
    for file in kept.cache_files:
        if file["filename"] not in known:
            Path(file["filename"]).unlink(missing_ok=True)
