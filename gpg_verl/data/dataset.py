"""What a data set is, and what a reader makes of one of its rows.

A reader takes a row as the hub or a local file of the same data has it, and returns a `Question`. It reads the field
names of every release named in shared use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gpg_verl.data import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Row = dict[str, object]


@dataclass(frozen=True)
class Question:
    text: str
    golds: list[str]  # the accepted answers; empty where the data has none
    own_prompt: str | None = None  # a complete prompt that the data brings along
    level: int | None = None  # MATH's 1 to 5, 0 for its two rows of unknown level; None where the data has no levels
    image: object = None  # encoded bytes, a path, or the hub's {bytes, path}; None in a text set
    part: str | None = None  # the part of the evaluation set, which goes into the data source: CV-Bench's task
    mask: Image | None = None  # LISA: 1 where the target is, 255 where evaluation looks away; of the image's own size


@dataclass(frozen=True)
class Split:
    hub_split: str
    rows: tuple[int, ...]  # the known row counts, the hub's first; empty: none is known, so none is checked
    file: str | None = None  # the one file of the hub's repository to read
    hub_id: str | None = None  # where this split comes from, if not from the data set's own hub id
    data_source: str | None = None  # the same for the name that the rewards are chosen by
    parts: dict[str, int] = field(default_factory=dict)  # the known row count of each part
    first: int | None = None  # only so many rows of the hub's split are used; they are streamed
    expand: Callable[[Row], list[Row]] | None = None  # a row of the source as none, one or several of ours
    not_on_hub: str | None = None  # what to download instead, and how to name it


@dataclass(frozen=True)
class DataSet:
    name: str
    about: str
    hub_id: str
    data_source: str  # what the rewards are chosen by (reward_fns)
    licence: str
    splits: dict[str, Split]  # ours: "train" is for training, "val" and "test" are for evaluation
    read: Callable[[Row], Question]
    hub_config: str | None = None
    levels: tuple[int, ...] = ()  # keep only these of MATH's levels; empty: all
    template: str = "boxed"  # the prompt template unless --template names one
    images: bool = False
    # Reads a local layout of the set's own (folder or file, split); None if the path is not such a layout.
    layout: Callable[[Path, str], list[Row] | None] | None = None

    def source_of(self, split: str) -> str:
        return self.splits[split].hub_id or self.hub_id


def get_field(row: Row, *names: str) -> object:
    """The first of these fields that the row has."""
    for name in names:
        if name in row:
            return row[name]
    raise DataError(f"no field {' or '.join(names)}; it has {', '.join(row) or 'no field at all'}")


def get_text(row: Row, *names: str) -> str:
    """The question, as text without space around it."""
    text = get_field(row, *names)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"the question is {text!r}, expected text")
    return text.strip()
