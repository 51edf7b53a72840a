"""A run's data files, each opened once before Ray starts and read as veRL reads it.

What is wrong with a file, a column or a row is kept here by name; `inputs.py` tells what of it matters to the run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from gpg_verl.compat.versions import LocalProblem

MOST = 1 << 20  # rows looked at in a file, for which two seconds are enough
MOST_BY_HAND = 50_000  # of a column whose type leaves it to each row what it holds
BATCH = 1 << 16


class Unreadable(Exception):
    """veRL could not read this file; the message says why and what to do."""


@dataclass
class DataFile:
    """What one file holds.

    features: `datasets`' names and types of the columns.
    looked_at: of the columns that matter, in how many rows.
    faults: a column's first bad row, in words.
    sources: each data source with the first row that has it.
    """

    name: str
    features: dict[str, Any]
    rows: int
    looked_at: dict[str, int] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    sources: dict[Any, int] = field(default_factory=dict)


@dataclass
class Split:
    """The files behind `key` (`data.train_files`), with what stands against reading them.

    counted: none of them is remote or unreadable, so `rows` is the whole.
    """

    key: str
    files: list[DataFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    counted: bool = True

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def read_split(config: DictConfig, split: str) -> Split:
    """Reads the files of `data.{split}_files`. Remote ones are left to veRL."""
    found = Split(f"data.{split}_files")
    given = OmegaConf.select(config, found.key)
    for name in list(given) if isinstance(given, ListConfig | list) else [given]:
        if not isinstance(name, str) or not name:
            found.problems.append(f"{found.key}={given}: expected the path of a parquet or jsonl file in veRL's format")
        elif "://" in name:
            found.counted = False
        else:
            try:
                found.files.append(read(name, config.data.prompt_key))
            except Unreadable as error:
                kind = str if os.path.exists(os.path.expanduser(name)) else LocalProblem
                found.problems.append(kind(f"{found.key}: {name}: {error}"))
    found.counted &= not found.problems
    if found.counted and (column := _unlike(found.files)):
        found.problems.append(
            f"{found.key}: column {column} is of other types in other files, so veRL cannot join them; write them alike"
        )
    return found


def read(name: str, prompt_key: str) -> DataFile:
    """Looks at all rows of a file, or at a sample of MOST; raises Unreadable."""
    path = Path(os.path.expanduser(name))
    if not path.is_file():
        raise Unreadable("no such file; make it, or correct the path")
    if name.endswith(".parquet"):
        opened = _open_parquet(path)
    elif name.endswith((".json", ".jsonl")):
        opened = _open_json(path)
    else:
        raise Unreadable(f"veRL reads .parquet, .json and .jsonl, not {path.suffix or 'a file without suffix'}")
    import pyarrow

    with opened as (features, rows, batches_of):
        file = DataFile(name, features, rows)
        judges = {prompt_key: PROMPT, "reward_model": GOLD, "extra_info": EXTRA}
        try:
            for start, batch in batches_of([column for column in (*judges, "data_source") if column in features]):
                _look(file, start, batch, judges)
        except (pyarrow.ArrowException, ValueError, OSError) as error:
            raise Unreadable(f"not a readable {path.suffix[1:]} file ({error}); write it again") from None
    return file


@contextlib.contextmanager
def _open_parquet(path: Path):
    import datasets
    import pyarrow.parquet

    def batches_of(columns: list[str]) -> Iterator:
        every = max(1, math.ceil(file.metadata.num_rows / MOST))
        start = left = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if group % every == 0:
                left, at = MOST, start
                for batch in file.iter_batches(BATCH, row_groups=[group], columns=columns) if columns else ():
                    if left <= 0:
                        break
                    yield at, batch
                    at, left = at + batch.num_rows, left - batch.num_rows
            start += rows

    try:
        file = pyarrow.parquet.ParquetFile(path)
        features = datasets.Features.from_arrow_schema(file.schema_arrow)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise Unreadable(f"not a readable parquet file ({error}); write it again") from None
    with file:
        yield features, file.metadata.num_rows, batches_of


@contextlib.contextmanager
def _open_json(path: Path):
    """By veRL's own call: what `datasets` makes of the file is kept on disk, and veRL's reading finds it there."""
    import datasets

    try:
        with _quiet(datasets):
            rows = datasets.load_dataset("json", data_files=str(path))["train"]
    except Exception as error:  # whatever its parsers raise
        raise Unreadable(_why_not_json(path, error)) from None

    def batches_of(columns: list[str]) -> Iterator:
        chosen = rows.select_columns(columns).with_format("arrow")
        every = max(1, math.ceil(len(rows) / MOST))
        for start in range(0, len(rows), BATCH * every) if columns else ():
            yield from ((start, batch) for batch in chosen[start : start + BATCH].combine_chunks().to_batches())

    yield rows.features, len(rows), batches_of


@contextlib.contextmanager
def _quiet(datasets) -> Iterator[None]:
    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
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


def _look(file: DataFile, start: int, batch, judges: dict[str, Judge]) -> None:
    """Adds what the rows of a batch show to the file."""
    _refuse_other_text(start, batch)
    for column, values in zip(batch.schema.names, batch.columns, strict=True):
        before = file.looked_at.setdefault(column, 0)
        if column == "data_source":
            for source in values.unique().to_pylist():
                if source not in file.sources:
                    file.sources[source] = start + values.to_pylist().index(source)
        elif column not in file.faults:
            judge, feature = judges[column], file.features[column]
            row = judge.by_type(values)
            if row is UNDECIDED:
                if before >= MOST_BY_HAND:
                    continue
                rows = range(len(values))
                row = next((row for row in rows if not judge.sound(_value(values[row], feature))), None)
            if row is not None:
                value = _value(values[row], feature)
                held = "null" if value is None else repr(str(value)[:60])
                file.faults[column] = f"row {start + row}: column {column} holds {held}, expected {judge.expected}"
        file.looked_at[column] = before + batch.num_rows


def _refuse_other_text(start: int, batch) -> None:
    """Arrow's readers take bytes that are not UTF-8; what fails is the first use of such a row."""
    if _is_text(batch):
        return
    low, high = 0, batch.num_rows  # the first bad row is one of [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _is_text(batch.take(list(range(low, middle)))) else (low, middle)
    raise Unreadable(f"row {start + low} is not UTF-8 text; write the file again as UTF-8")


def _is_text(batch) -> bool:
    import pyarrow

    try:
        batch.validate(full=True)
    except pyarrow.ArrowInvalid as error:
        if "UTF8" in str(error):
            return False
        raise
    return True


def _value(scalar, feature) -> Any:
    """A row's value in Python, with what `datasets` keeps as JSON text read."""
    import datasets

    return datasets.Features({"value": feature}).decode_example({"value": scalar.as_py()})["value"]


@dataclass(frozen=True)
class Judge:
    """What a column must hold.

    by_type: the first bad row of an array, or None; UNDECIDED where its type leaves that to each row.
    sound: whether a row's value will do.
    """

    expected: str
    by_type: Callable[[Any], int | None]
    sound: Callable[[Any], bool]


UNDECIDED = -1


def _first_true(mask) -> int | None:
    import pyarrow.compute as pc

    row = pc.index(mask, True).as_py()
    return None if row < 0 else row


def _first_bad_prompt(prompts) -> int | None:
    """The first row without messages, or with one that lacks its role or content (but may call tools instead)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def is_text(kind) -> bool:
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)

    def is_list(kind) -> bool:
        return pa.types.is_list(kind) or pa.types.is_large_list(kind)

    if not is_list(prompts.type) or not pa.types.is_struct(prompts.type.value_type):
        return UNDECIDED
    kinds = {field.name: field.type for field in prompts.type.value_type}
    if not is_text(kinds.get("role")) or not (is_text(kinds.get("content")) or is_list(kinds.get("content"))):
        return UNDECIDED
    messages, rows = pc.list_flatten(prompts), pc.list_parent_indices(prompts)
    silent = pc.is_null(pc.struct_field(messages, "content"))
    if "tool_calls" in kinds:
        silent = pc.and_(silent, pc.is_null(pc.struct_field(messages, "tool_calls")))
    wrong = pc.or_(silent, pc.is_null(pc.struct_field(messages, "role")))
    empty = _first_true(pc.equal(pc.fill_null(pc.list_value_length(prompts), 0), 0))
    return min((row for row in (empty, pc.min(rows.filter(wrong)).as_py()) if row is not None), default=None)


def _is_prompt(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    return isinstance(value.get("content"), str | list) or bool(value.get("tool_calls"))


def _first_bad_gold(golds) -> int | None:
    import pyarrow as pa

    if not pa.types.is_struct(golds.type) or golds.type.get_field_index("ground_truth") < 0:
        return UNDECIDED
    return _first_true(golds.is_null())


def _first_bad_extra(extras) -> int | None:
    import pyarrow as pa

    return None if pa.types.is_struct(extras.type) or pa.types.is_null(extras.type) else UNDECIDED


PROMPT = Judge('a list of messages [{"role": "user", "content": "..."}]', _first_bad_prompt, _is_prompt)
GOLD = Judge(
    '{"style": "rule", "ground_truth": "..."}',
    _first_bad_gold,
    lambda value: isinstance(value, dict) and "ground_truth" in value,
)
EXTRA = Judge("an object with names, or null", _first_bad_extra, lambda value: value is None or isinstance(value, dict))


def _unlike(files: list[DataFile]) -> str | None:
    """A column that files have of types which `datasets` does not join; None where it joins all."""
    import datasets

    def one_row(file: DataFile, column: str):
        return datasets.Dataset.from_dict({column: [None]}, features=datasets.Features({column: file.features[column]}))

    for column in {column: None for file in files for column in file.features}:
        alike = [one_row(file, column) for file in files if column in file.features]
        try:
            datasets.concatenate_datasets(alike)
        except ValueError:
            return column
    return None
