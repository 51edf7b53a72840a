"""Rows of a data set, one after the other, from a local file or from the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from gpg_verl.data import DataError
from gpg_verl.data.dataset import DataSet, Row

SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow")
BATCH = 64  # rows in memory at a time, with their images


def load(data_set: DataSet, split: str, source: str | None, revision: str | None) -> Iterator[Row]:
    """All rows of one split of a data set; `source` is a file, a folder or a hub id, by default the split's own hub id.

    Images come as encoded bytes or as paths, never decoded.
    """
    chosen = data_set.splits[split]
    if source is None:
        if chosen.not_on_hub:
            raise DataError(f"{data_set.name} {split} is not a data set on the hub. {chosen.not_on_hub}")
        return _first(read_hub(data_set, split, data_set.source_of(split), revision), chosen.first)
    path = Path(source)
    if data_set.layout and path.exists() and (rows := data_set.layout(path, split)) is not None:
        return rows
    if path.is_file():
        rows = read_file(path)
        return rows if path.suffix == ".json" else _first(rows, chosen.first)  # a json holds the chosen rows alone
    if path.is_dir():  # a clone of the hub's repository, or a folder with files named after the splits
        return _first(read_hub(data_set, split, str(path), revision), chosen.first)
    if path.suffix in (*SUFFIXES, ".pth") or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise DataError(
            f"--source {source}: no such file or folder. Give the path of a {', '.join(SUFFIXES)} file, or a hub id "
            f"such as {data_set.hub_id}."
        )
    return _first(read_hub(data_set, split, source, revision), chosen.first)


def _first(rows: Iterator[Row], count: int | None) -> Iterator[Row]:
    return islice(rows, count)  # all of them if it is None


def read_hub(data_set: DataSet, split: str, hub_id: str, revision: str | None) -> Iterator[Row]:
    import datasets  # seconds to import, and only needed here

    chosen = data_set.splits[split]
    ours = hub_id == data_set.source_of(split) or Path(hub_id).is_dir()
    try:
        rows = datasets.load_dataset(
            hub_id,
            data_set.hub_config if hub_id == data_set.hub_id else None,
            # With data_files the builder knows only the splits named there.
            data_files={chosen.hub_split: chosen.file} if chosen.file and ours else None,
            split=chosen.hub_split,
            revision=revision,
            streaming=chosen.first is not None,  # SAT's file is 4.6 GB, and a tenth of it is used
        )
        yield from _undecoded(rows)
    except Exception as error:  # whatever the hub, the network or a loader raises
        if Path(hub_id).is_dir():
            here = ", ".join(sorted(file.name for file in Path(hub_id).iterdir())[:9]) or "nothing"
            raise DataError(
                f"{hub_id}, split {chosen.hub_split}: this folder cannot be loaded as a data set "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}). In it are {here}. All files must "
                "be of one kind and have the names of the splits (train.jsonl, test.jsonl), or give --source FILE."
            ) from None
        raise DataError(
            f"{hub_id}, split {chosen.hub_split}: cannot be loaded ({type(error).__name__}: {error}). Check the name "
            "and the network (HF_ENDPOINT names a mirror, HF_TOKEN a login), or download the file elsewhere and give "
            "--source FILE."
        ) from None


def _undecoded(rows):
    """Images stay {bytes, path}: a damaged one is then a row to name, not the end of the reading."""
    import datasets

    encoded = datasets.Image(decode=False)
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, encoded)
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            rows = rows.cast_column(column, datasets.List(encoded))
    return rows


def read_file(path: Path, columns: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of a .jsonl or .json (a list of objects, or one a line), .parquet or .arrow file.

    columns: of a .parquet or .arrow file only these, where it has them.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: read are {', '.join(SUFFIXES)}, not {path.suffix or 'a file without suffix'}.")
    return _read_columns(path, columns) if path.suffix in (".parquet", ".arrow") else _read_json(path)


def _read_json(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # with a byte order mark or without
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}). Save it as UTF-8.") from None
    if text.lstrip().startswith("["):
        rows = _parse(text, str(path))
    else:
        lines = enumerate(text.split("\n"), 1)
        rows = (_parse(line, f"{path}, line {number}") for number, line in lines if line.strip())
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: {str(row)[:60]!r}, expected a JSON object with the row's fields.")
        yield row


def column_names(path: Path) -> list[str]:
    """The columns of a .parquet file; none of any other."""
    import pyarrow
    import pyarrow.parquet

    if path.suffix != ".parquet":
        return []
    try:
        return pyarrow.parquet.read_schema(path).names
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable {path.suffix} file ({error}). Download it again.") from None


def _parse(text: str, where: str):
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}). Mend it, or download the file again.") from None


def _read_columns(path: Path, columns: Collection[str] | None) -> Iterator[Row]:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    def wanted(names: list[str]) -> list[str]:
        return [name for name in names if columns is None or name in columns]

    try:
        if path.suffix == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH, columns=wanted(file.schema_arrow.names)):
                    yield from batch.to_pylist()
            return
        with path.open("rb") as file:
            is_file_format = file.read(6) == b"ARROW1"
        opened = pyarrow.ipc.open_file if is_file_format else pyarrow.ipc.open_stream  # `datasets` writes streams
        with pyarrow.memory_map(str(path)) as file, opened(file) as reader:
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file_format else reader
            for batch in batches:
                yield from batch.select(wanted(batch.schema.names)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable {path.suffix} file ({error}). Download it again.") from None
