"""A run's data files, each read once before Ray starts, as veRL reads them: by `datasets`.

Of a file up to MOST rows are looked at (MOST_WITH_IMAGES where rows hold images); what is wrong with them, checks.py
says. Nothing is left in the cache of `datasets`.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

MOST = 20_000
MOST_WITH_IMAGES = 2_000  # their bytes are read for their sizes
BATCH = 1_000


class Unreadable(Exception):
    """veRL could not read this file; the message says why and what to do."""


@dataclass
class DataFile:
    """What one file holds.

    features: `datasets`' names and types of the columns.
    looked_at: the numbers of the rows that were read, from 0.
    columns: the values of those rows, of the columns that the run may read; of images their (width, height).
    """

    name: str
    features: dict[str, Any]
    rows: int
    looked_at: list[int] = field(default_factory=list)
    columns: dict[str, list] = field(default_factory=dict)


@dataclass
class Split:
    """The files behind `key` (`data.train_files`).

    missing, unreadable: why files could not be read, on this machine and anywhere.
    complete: none of them is remote or could not be read, so `rows` is the whole.
    """

    key: str
    files: list[DataFile] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    complete: bool = True

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def read_split(config: DictConfig, split: str) -> Split:
    """Reads the files of `data.{split}_files`. Remote ones are left to veRL."""
    found = Split(f"data.{split}_files")
    given = OmegaConf.select(config, found.key)
    image_key = OmegaConf.select(config, "data.image_key") or "images"
    for name in list(given) if isinstance(given, ListConfig | list) else [given]:
        if not isinstance(name, str) or not name:
            found.unreadable.append(
                f"{found.key}={given}: expected the path of a parquet or jsonl file in veRL's format"
            )
        elif "://" in name:
            found.complete = False
        else:
            try:
                found.files.append(read(name, config.data.prompt_key, image_key))
            except Unreadable as error:
                there = os.path.exists(os.path.expanduser(name))
                (found.unreadable if there else found.missing).append(f"{found.key}: {name}: {error}")
    found.complete &= not (found.missing or found.unreadable)
    if found.complete and (column := _unlike(found.files)):
        found.unreadable.append(
            f"{found.key}: column {column} is of other types in other files, so veRL cannot join them; write them alike"
        )
    return found


def read(name: str, prompt_key: str, image_key: str = "images") -> DataFile:
    """Looks at a file; raises Unreadable."""
    import datasets
    import pyarrow

    path = Path(os.path.expanduser(name))
    if not path.is_file():
        raise Unreadable("no such file; make it, or correct the path")
    if name.endswith(".parquet"):
        opened = _parquet(path)
    elif name.endswith((".json", ".jsonl")):
        opened = _json(path)
    else:
        raise Unreadable(f"veRL reads .parquet, .json and .jsonl, not {path.suffix or 'a file without suffix'}")
    try:
        with opened as (features, rows, batches):
            file = DataFile(name, features, rows)
            wanted = (prompt_key, "data_source", "reward_model", "extra_info", "agent_name", image_key)
            file.columns = {column: [] for column in dict.fromkeys(wanted) if column in features}
            most = MOST_WITH_IMAGES if image_key in features else MOST
            for start, batch in batches(list(file.columns), most) if file.columns else ():
                file.looked_at += range(start, start + batch.num_rows)
                for column, values in zip(batch.schema.names, batch.columns, strict=True):
                    if column == image_key:
                        file.columns[column] += [[_size(image) for image in row or ()] for row in values.to_pylist()]
                    else:  # what `datasets` keeps as JSON text is read
                        feature = datasets.Features({column: features[column]})
                        file.columns[column] += feature.decode_column(_python(values, start), column)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise Unreadable(f"not a readable {path.suffix[1:]} file ({error}); write it again") from None
    return file


# A file's features, its rows, and a reader of up to so many rows of some columns, in batches: (first row, batch).
Opened = tuple[dict[str, Any], int, Callable[[list[str], int], Iterator[tuple[int, Any]]]]


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Opened]:
    """By row groups, evenly over the file, so that a part of a large file is read without the rest."""
    import datasets
    import pyarrow.parquet

    def batches(columns: list[str], most: int) -> Iterator[tuple[int, Any]]:
        every = max(1, math.ceil(file.metadata.num_rows / most))
        start = 0
        for group in range(file.num_row_groups):
            rows, at = file.metadata.row_group(group).num_rows, start
            start += rows
            if group % every == 0:
                for batch in file.iter_batches(min(BATCH, most), row_groups=[group], columns=columns):
                    if at - (start - rows) >= most:
                        break
                    yield at, batch
                    at += batch.num_rows

    try:
        file = pyarrow.parquet.ParquetFile(path)
        features = datasets.Features.from_arrow_schema(file.schema_arrow)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise Unreadable(f"not a readable parquet file ({error}); write it again") from None
    with file:
        yield features, file.metadata.num_rows, batches


@contextlib.contextmanager
def _json(path: Path) -> Iterator[Opened]:
    """By veRL's own call, but for the place of what `datasets` makes of the file."""
    import datasets

    def batches(columns: list[str], most: int) -> Iterator[tuple[int, Any]]:
        chosen, size = rows.select_columns(columns).with_format("arrow"), min(BATCH, most)
        every = max(1, math.ceil(len(rows) / most))
        for start in range(0, len(rows), size * every):
            for batch in chosen[start : start + size].combine_chunks().to_batches():
                yield start, batch

    with tempfile.TemporaryDirectory() as folder:
        try:
            with _quiet(datasets):
                rows = datasets.load_dataset("json", data_files=str(path), cache_dir=folder)["train"]
        except Exception as error:  # whatever its parsers raise
            raise Unreadable(_why_not_json(path, error)) from None
        yield rows.features, len(rows), batches


@contextlib.contextmanager
def _quiet(datasets) -> Iterator[None]:
    level, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def _why_not_json(path: Path, error: Exception) -> str:
    """The line that `datasets` could not read; what it said itself where every line is an object."""
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not text.strip():
        return "holds no rows; write it again"
    if text.lstrip().startswith(b"["):
        try:
            json.loads(text)
        except ValueError as wrong:
            return f"not a JSON list ({wrong}); write it again"
    else:
        for number, line in enumerate(text.split(b"\n"), 1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    raise ValueError(line[:60].decode())
            except ValueError as wrong:
                return f"line {number} is not a JSON object ({wrong}); write one object a line"
    return f"not a readable JSON file ({' '.join(str(error.__cause__ or error).split())[:300]}); write it again"


def _python(values, start: int) -> Sequence:
    """A column's values; Arrow's readers take bytes that are not UTF-8, and fail at the first use of such a row."""
    found: list[Any] = []
    try:
        for value in values:
            found.append(value.as_py())
    except UnicodeDecodeError:
        raise Unreadable(f"row {start + len(found)} is not UTF-8 text; write the file again as UTF-8") from None
    return found


def _size(image: Any) -> tuple[int, int] | None:
    """(width, height) of an image as a row holds it, from its first bytes; None where they do not say."""
    from PIL import Image

    held = {"path": image} if isinstance(image, str) else image or {}
    try:
        with Image.open(io.BytesIO(held["bytes"]) if held.get("bytes") else held["path"]) as opened:
            return opened.size
    except Exception:  # whatever a decoder makes of it; `gpg_verl.data` says what is wrong with an image
        return None


def _unlike(files: list[DataFile]) -> str | None:
    """A column that files have of types which `datasets` does not join; None where it joins all."""
    import datasets

    for column in {column: None for file in files for column in file.features}:
        features = [datasets.Features({column: file.features[column]}) for file in files if column in file.features]
        try:
            datasets.concatenate_datasets([datasets.Dataset.from_dict({column: [None]}, f) for f in features])
        except ValueError:
            return column
    return None


def _is_message(value) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    return isinstance(value.get("content"), str | list) or bool(value.get("tool_calls"))


def is_prompt(value) -> bool:
    """Whether a value is a conversation as chat templates take it."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))
