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
    if source is None and chosen.not_on_hub:
        raise DataError(f"{data_set.name} {split} is not a data set on the hub. {chosen.not_on_hub}")
    path = Path(source or "")
    if source and data_set.layout and path.exists() and (rows := data_set.layout(path, split)) is not None:
        return iter(rows)
    if source and path.is_file():
        return islice(read_file(path), None if path.suffix == ".json" else chosen.first)  # a json holds them alone
    looks_local = path.suffix in (*SUFFIXES, ".pth") or str(source).startswith((".", "/", "~"))
    if source and not path.is_dir() and (looks_local or source.count("/") != 1):
        raise DataError(
            f"--source {source}: no such file or folder. Give the path of a {', '.join(SUFFIXES)} file, or a hub id "
            f"such as {data_set.hub_id}."
        )
    return islice(read_hub(data_set, split, source or data_set.source_of(split), revision), chosen.first)


def read_hub(data_set: DataSet, split: str, hub_id: str, revision: str | None) -> Iterator[Row]:
    """Rows of a hub repository, or of a folder that is a clone of one or has files named after the splits."""
    import datasets  # seconds to import, and only needed here

    chosen, folder = data_set.splits[split], Path(hub_id)
    ours = hub_id == data_set.source_of(split) or folder.is_dir()
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
        yield from _encoded(rows if chosen.first is not None else rows.to_iterable_dataset())
    except Exception as error:  # whatever the hub, the network or a loader raises
        hint = (
            "Check the name and the network (HF_ENDPOINT names a mirror, HF_TOKEN a login), or download the file "
            "elsewhere and give --source FILE."
        )
        if folder.is_dir():
            here = ", ".join(sorted(file.name for file in folder.iterdir())[:9]) or "nothing"
            hint = (
                f"In it are {here}. All files must be of one kind and have the names of the splits (train.jsonl, "
                "test.jsonl), or give --source FILE."
            )
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise DataError(f"{hub_id}, split {chosen.hub_split}: cannot be loaded ({cause}). {hint}") from None


def _encoded(rows) -> Iterator[Row]:
    """Images stay {bytes, path}: a damaged one is then a row to name, not the end of the reading."""
    return iter(rows.decode(False) if rows.features else rows)


def read_file(path: Path, columns: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of a .jsonl or .json (a list of objects, or one a line), .parquet or .arrow file.

    columns: of a .parquet file only these, where it has them.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: read are {', '.join(SUFFIXES)}, not {path.suffix or 'a file without suffix'}.")
    if path.suffix in (".json", ".jsonl"):
        yield from _read_json(path)
        return
    import datasets
    import pyarrow.parquet

    more = {}
    try:
        if path.suffix == ".parquet":
            names = pyarrow.parquet.read_schema(path).names
            more = {"batch_size": BATCH, "columns": [name for name in names if columns is None or name in columns]}
        kind = path.suffix.removeprefix(".")
        yield from _encoded(datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True, **more))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable {path.suffix} file ({error}). Download it again.") from None


def _read_json(path: Path) -> Iterator[Row]:
    """Not by `datasets`, which gives all rows one type: a gold that is a list here and a number there is no error."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # with a byte order mark or without
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}). Save it as UTF-8.") from None
    if text.lstrip().startswith("["):
        rows = _parse(text, str(path))
    else:
        rows = (_parse(line, f"{path}, line {n}") for n, line in enumerate(text.split("\n"), 1) if line.strip())
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: {str(row)[:60]!r}, expected a JSON object with the row's fields.")
        yield row


def _parse(text: str, where: str):
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}). Mend it, or download the file again.") from None
