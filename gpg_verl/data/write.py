"""Rows in veRL's format, as a parquet file that appears whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from gpg_verl.data import DataError
from gpg_verl.data.dataset import DataSet, Question
from gpg_verl.data.images import Picture, png
from gpg_verl.data.templates import Template

TEXT, NUMBER = pa.string(), pa.int64()
ROWS_PER_GROUP = 64  # so many are in memory, with their images
_COLUMNS = {
    "data_source": TEXT,
    "prompt": pa.list_(pa.struct({"role": TEXT, "content": TEXT})),
    "ability": TEXT,
    "reward_model": pa.struct({"style": TEXT, "ground_truth": TEXT}),
}
_EXTRA = {"split": TEXT, "index": NUMBER, "question": TEXT}
_IMAGE_EXTRA = {
    "image_width": NUMBER,  # pixels of the image in this file
    "image_height": NUMBER,
    "image_sha256": TEXT,  # of the image as the source has it: images.Picture
    "mask": pa.binary(),  # LISA: a PNG of the image's size, 1 target, 255 not evaluated, 0 the rest
}
# One schema for every text set, and one for every vision set: veRL concatenates the files of `data.val_files`, which
# takes the same types in all of them.
TEXT_SCHEMA = pa.schema(_COLUMNS | {"extra_info": pa.struct(_EXTRA | {"level": NUMBER})})
VISION_SCHEMA = pa.schema(
    _COLUMNS
    | {
        "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": TEXT})),
        "extra_info": pa.struct(_EXTRA | _IMAGE_EXTRA),
    }
)


def verl_row(
    data_set: DataSet, split: str, index: int, question: Question, template: Template, picture: Picture | None = None
) -> dict[str, object]:
    """One row as veRL's data set reads it; `index` is the row's number in the source, from 0.

    Where one row of the source makes several of ours or none, the numbers count ours.
    """
    data_source = data_set.splits[split].data_source or data_set.data_source
    extra = {"split": split, "index": index, "question": question.text}
    row = {
        "data_source": f"{data_source}/{question.part}" if question.part else data_source,
        "prompt": template.messages(question),
        "ability": "vision" if data_set.images else "math",
        "reward_model": {"style": "rule", "ground_truth": ground_truth(question.golds)},
    }
    if picture is None:
        return row | {"extra_info": extra | {"level": question.level}}
    size = (picture.width, picture.height)
    mask = None if question.mask is None else png(question.mask.resize(size, Image.Resampling.NEAREST))
    extra |= {"image_width": size[0], "image_height": size[1], "image_sha256": picture.sha256, "mask": mask}
    return row | {"images": [{"bytes": picture.data, "path": None}], "extra_info": extra}


def ground_truth(golds: list[str]) -> str:
    """The accepted answer; several of them as a JSON list, which reward_fns reads as such; "" if there is none."""
    return "".join(golds) if len(golds) < 2 else json.dumps(golds, ensure_ascii=False)


def write(rows: Iterable[dict[str, object]], file: Path, schema: pa.Schema) -> int:
    """Put the rows into `file` and return their number; a file of that name is replaced when the new one is complete.

    The rows are taken as they come, a group at a time. If their source raises, there is no new file, and no new
    folder.
    """
    count, rows = 0, iter(rows)
    there = next(folder for folder in file.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=f".{file.stem}-") as temporary:
            work = Path(temporary) / file.name
            with pq.ParquetWriter(work, schema) as writer:
                while group := list(islice(rows, ROWS_PER_GROUP)):
                    writer.write_table(pa.Table.from_pylist(group, schema))
                    count += len(group)
            file.parent.mkdir(parents=True, exist_ok=True)
            os.replace(work, file)
    except OSError as error:
        raise DataError(
            f"{file}: cannot be written ({error.strerror or error}). Name another folder: --out DIR."
        ) from None
    return count
