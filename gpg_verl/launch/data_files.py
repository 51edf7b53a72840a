"""A run's data files, each read once before Ray starts, as veRL reads them: by `datasets`.

Of a file up to MOST rows are looked at (MOST_WITH_IMAGES where rows hold images); what is wrong with them, checks.py
says. Nothing is left in the cache of `datasets`.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from gpg_verl.compat.versions import LocalProblem

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

    problems: why files could not be read.
    complete: none of them is remote or could not be read, so `rows` is the whole.
    """

    key: str
    files: list[DataFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    complete: bool = True

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def read_split(config: DictConfig, split: str) -> Split:
    """Reads the files of `data.{split}_files`. Remote ones are left to veRL."""
    import datasets

    found = Split(f"data.{split}_files")
    given = OmegaConf.select(config, found.key)
    image_key = OmegaConf.select(config, "data.image_key") or "images"
    for name in list(given) if isinstance(given, ListConfig | list) else [given]:
        if not isinstance(name, str) or not name:
            found.problems.append(f"{found.key}={given}: expected the path of a parquet or jsonl file in veRL's format")
        elif "://" in name:
            found.complete = False
        elif not os.path.exists(os.path.expanduser(name)):
            found.problems.append(LocalProblem(f"{found.key}: {name}: no such file; make it, or correct the path"))
        else:
            try:
                found.files.append(read(name, config.data.prompt_key, image_key))
            except Unreadable as error:
                found.problems.append(f"{found.key}: {name}: {error}")
    found.complete &= not found.problems
    for column in {column: None for file in found.files for column in file.features}:
        types = [datasets.Features({column: file.features[column]}) for file in found.files if column in file.features]
        try:
            datasets.concatenate_datasets([datasets.Dataset.from_dict({column: [None]}, each) for each in types])
        except ValueError:
            why = f"column {column} is of other types in other files, so veRL cannot join them; write them alike"
            found.problems.append(f"{found.key}: {why}")
            break
    return found


def read(name: str, prompt_key: str, image_key: str = "images") -> DataFile:
    """Looks at a file; raises Unreadable."""
    path = Path(os.path.expanduser(name))
    opened = {".parquet": _parquet, ".json": _json, ".jsonl": _json}.get(path.suffix)
    if opened is None or not path.is_file():
        raise Unreadable(f"veRL reads .parquet, .json and .jsonl, not {path.suffix if path.is_file() else 'a folder'}")
    try:
        features, stretches, batches = opened(path)
        file = DataFile(name, features, sum(stretches))
        wanted = (prompt_key, "data_source", "reward_model", "extra_info", image_key)
        file.columns = {column: [] for column in dict.fromkeys(wanted) if column in features}
        most = MOST_WITH_IMAGES if image_key in features else MOST
        every = max(1, math.ceil(file.rows / most))  # evenly over the file
        for index in range(0, len(stretches) if file.columns else 0, every):
            row = sum(stretches[:index])
            for batch in batches(index, list(file.columns)):
                if len(file.looked_at) >= most:
                    break
                for column, values in zip(batch.schema.names, batch.columns, strict=True):
                    file.columns[column] += _python(features[column], column, values, row, column == image_key)
                file.looked_at += range(row, row + batch.num_rows)
                row += batch.num_rows
    except Unreadable:
        raise
    except Exception as error:  # of Arrow, or whatever the parsers of `datasets` raise
        why = _bad_json(path) if opened is _json else None
        said = " ".join(str(error.__cause__ or error).split())[:300]
        raise Unreadable(f"{why or f'not a readable {path.suffix[1:]} file ({said})'}; write it again") from None
    return file


# A file's features, the rows of its stretches, and a reader of some columns of one stretch, in batches.
Opened = tuple[dict[str, Any], list[int], Callable[[int, list[str]], Iterable[Any]]]


def _parquet(path: Path) -> Opened:
    """By row groups, so that a part of a large file is read without the rest."""
    import datasets
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    return (
        datasets.Features.from_arrow_schema(file.schema_arrow),
        [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)],
        lambda group, columns: file.iter_batches(BATCH, row_groups=[group], columns=columns),
    )


def _json(path: Path) -> Opened:
    """By veRL's own call, but for the place of what `datasets` makes of the file: it is gone from the disk at once."""
    import datasets

    level = logging.root.manager.disable
    logging.disable()
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            rows = datasets.load_dataset("json", data_files=str(path), cache_dir=folder)["train"]
    finally:
        logging.disable(level)

    def batches(stretch: int, columns: list[str]) -> Iterable[Any]:
        chosen = rows.select_columns(columns).with_format("arrow")
        return chosen[stretch * BATCH : (stretch + 1) * BATCH].combine_chunks().to_batches()

    return rows.features, [min(BATCH, len(rows) - start) for start in range(0, len(rows), BATCH)], batches


def _bad_json(path: Path) -> str | None:
    """The line that `datasets` could not read; None where every line is an object."""
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not text.strip():
        return "holds no rows"
    is_list = text.lstrip().startswith(b"[")
    for number, line in enumerate([text] if is_list else text.split(b"\n"), 1):
        try:
            if line.strip() and not isinstance(json.loads(line), list if is_list else dict):
                raise ValueError(line[:60].decode())
        except ValueError as wrong:
            return f"{'not a JSON list' if is_list else f'line {number} is not a JSON object'} ({wrong})"
    return None


def _python(feature, column: str, values, row: int, images: bool) -> list:
    """A column's values; Arrow's readers take bytes that are not UTF-8, and fail at the first use of such a row."""
    import datasets

    found: list[Any] = []
    try:
        for value in values:
            found.append(value.as_py())
    except UnicodeDecodeError:
        raise Unreadable(f"row {row + len(found)} is not UTF-8 text; write the file again as UTF-8") from None
    if images:
        return [[_size(image) for image in images or ()] for images in found]
    return datasets.Features({column: feature}).decode_column(found, column)  # what it keeps as JSON text is read


def _size(image: Any) -> tuple[int, int] | None:
    """(width, height) of an image as a row holds it, from its first bytes; None where they do not say."""
    from PIL import Image

    held = {"path": image} if isinstance(image, str) else image or {}
    try:
        with Image.open(io.BytesIO(held["bytes"]) if held.get("bytes") else held["path"]) as opened:
            return opened.size
    except Exception:  # whatever a decoder makes of it; `gpg_verl.data` says what is wrong with an image
        return None


def is_prompt(value) -> bool:
    """Whether a value is a conversation as chat templates take it."""

    def is_message(message) -> bool:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return False
        return isinstance(message.get("content"), str | list) or bool(message.get("tool_calls"))

    return isinstance(value, list) and bool(value) and all(map(is_message, value))
