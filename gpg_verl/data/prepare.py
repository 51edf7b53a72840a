"""One split of a data set: read, checked, turned into prompts and written.

In one pass, a row at a time: of 15,000 images only one group of rows is in memory. The file appears when the last row
has been seen and nothing speaks against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track

from gpg_verl.data import DataError, checks, images
from gpg_verl.data.dataset import DataSet, Question
from gpg_verl.data.images import MAX_PIXELS, Picture
from gpg_verl.data.source import load
from gpg_verl.data.templates import Template
from gpg_verl.data.write import TEXT_SCHEMA, VISION_SCHEMA, verl_row, write
from reward_fns import audit

OTHER_DATA = 10  # so many rows that cannot be read, and none before them that can, are another data set
NAMED_ROWS = 5  # of the rows that fail a check, so many are named


@dataclass(frozen=True)
class Options:
    """What the user asked for, beside the data set and the folder."""

    template: Template
    source: str | None = None
    revision: str | None = None
    images: Path | None = None
    max_pixels: int = MAX_PIXELS
    limit: int | None = None
    levels: tuple[int, ...] = ()
    against: tuple[Path, ...] = ()
    length: checks.PromptLength | None = None
    max_prompt_length: int | None = None
    allow_count: bool = False
    allow_broken: bool = False
    strict: bool = False


def prepare(data_set: DataSet, split: str, out: Path, options: Options) -> Iterator[str]:
    """Write one split into the folder `out`, and yield what to tell the user. Nothing is written after a DataError."""
    levels = f"_level{''.join(map(str, options.levels))}" if options.levels else ""
    file = out / f"{data_set.name}{levels}_{split}.parquet"
    endings = ("_test", "_val") if split == "train" else ("_train",)
    others = [other for other in sorted(out.glob("*.parquet")) if other.stem.endswith(endings)]
    writer = SplitWriter(data_set, split, options, [*options.against, *others])
    try:
        count = write(writer.rows(), file, VISION_SCHEMA if data_set.images else TEXT_SCHEMA)
    finally:
        yield from writer.report
    yield f"{writer.label}: {_plural(count, 'row')} written to {file}"


@dataclass
class SplitWriter:
    """The rows that pass, one after the other, and what was seen on the way.

    others: the files on the other side: evaluation sets for training data, and the reverse.
    counts: `read` (rows of the source), `asked` (questions taken from them), `repeated`, `scaled`, `broken`.
    failures: by a row's number, why it is left out, in words.
    """

    data_set: DataSet
    split: str
    options: Options
    others: list[Path]
    report: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)
    leaked: dict[int, str] = field(default_factory=dict)
    seen: set[checks.Identity] = field(default_factory=set)
    longest: int = 0

    def __post_init__(self):
        self.label = f"{self.data_set.name} {self.split}"

    def rows(self) -> Iterator[dict[str, object]]:
        known = checks.questions_of(self.others, self.data_set.images)
        splits, console = self.data_set.splits[self.split], Console(stderr=True)
        total = self.options.limit or splits.first or next(iter(splits.rows), None)
        progress = {"console": console, "transient": True, "disable": not console.is_terminal}
        for index, question in track(self._questions(), f"{self.label}: rows", total, **progress):
            self.counts["asked"] += 1
            self.parts.update(filter(None, [question.part]))
            try:
                picture = self._picture(question) if self.data_set.images else None
                row = verl_row(self.data_set, self.split, index, question, self.options.template, picture)
                why = self._problem(index, question, picture, row, known)
            except images.BrokenImage as error:
                self.counts["broken"] += 1
                why = f"has an image that cannot be used ({error})"
            if why:
                self.failures[index] = why
            else:
                yield row
        self._conclude()

    def _questions(self) -> Iterator[tuple[int, Question]]:
        """(the row's number, its question), of the levels and up to the number that were asked for."""
        options, data_set = self.options, self.data_set
        expand = data_set.splits[self.split].expand or (lambda row: [row])
        index = taken = unread = 0
        first = ""
        for number, source_row in enumerate(load(data_set, self.split, options.source, options.revision)):
            try:
                questions = [data_set.read(row) for row in expand(source_row)]
            except DataError as error:
                first = first or f"row {number}: {error}"
                self.failures[index] = f"cannot be read: {error}"
                index, unread = index + 1, unread + 1
                if unread == index == OTHER_DATA:
                    break
                self.counts.update(["read", "asked"])
                continue
            # Rows of other levels are no part of the set; rows without one come from a file of its levels alone.
            own = not data_set.levels or all(q.level in (None, *data_set.levels) for q in questions)
            self.counts["read"] += own
            for i, question in enumerate(questions, index):
                if own and (not options.levels or question.level in options.levels):
                    yield i, question
                    taken += 1
                    if taken == options.limit:
                        return
            index += len(questions)
        if unread and index <= unread:
            raise DataError(f"{self.label}, {first}. Is this another data set?")

    def _picture(self, question: Question) -> Picture:
        """The row's image; paths begin at --images, or at the folder of the source. Raises BrokenImage."""
        folder = self.options.images
        if folder is None and self.options.source is not None:
            source = Path(self.options.source)
            folder = source if source.is_dir() else source.parent
        picture = images.load(question.image, folder, self.options.max_pixels)
        self.counts["scaled"] += picture.scaled
        return picture

    def _problem(self, index: int, question: Question, picture, row: dict[str, object], known) -> str | None:
        """The first thing that is wrong with a row, in words."""
        identity = checks.identity(question.text, picture)
        self.counts["repeated"] += identity in self.seen
        self.seen.add(identity)
        tokens = self.options.length(row["prompt"], picture) if self.options.length else 0
        self.longest = max(self.longest, tokens)
        if file := known.get(identity):
            self.leaked[index] = file
            return f"is in {file}"
        too_long = tokens and tokens > self.options.max_prompt_length
        why = audit.problem(row) if question.golds else "has no gold answer"
        return why or (f"has {tokens:,} tokens" if too_long else None)

    def _conclude(self) -> None:
        """What is to say of all rows; raises DataError if they must not be written."""
        options, label, counts, known = self.options, self.label, self.counts, self.data_set.splits[self.split]
        evaluates = self.split != "train"
        if not options.allow_count and options.limit is None:
            checks.check_count(self.data_set, self.split, counts["read"], self.parts)
        if not counts["asked"]:
            asked = f"is of --level {' '.join(map(str, options.levels))}" if options.levels else "makes a question"
            raise DataError(f"{label}: none of the rows {asked} ({counts['read']:,} read).")
        chosen = f", {counts['asked']:,} of level {', '.join(map(str, options.levels))}" if options.levels else ""
        chosen += f", the first {counts['asked']:,} taken" if options.limit is not None else ""
        chosen += f", {_plural(counts['asked'], 'question')}" if known.expand else ""
        chosen += f" ({checks.listed(self.parts)})" if self.parts else ""
        self._say(f"{_plural(counts['read'], 'row')} read{chosen}")
        if not known.rows:
            self._say("how many rows it should have is not known, so that is not checked")
        if self.data_set.images:
            scaled = f"{counts['scaled']:,} scaled down to {options.max_pixels:,} pixels"
            self._say(f"{_plural(counts['asked'], 'image')}, {scaled}, {counts['broken']:,} broken")
        other, names = "training" if evaluates else "evaluation", ", ".join(file.name for file in self.others)
        leaked = f"{_plural(len(self.leaked), 'question')} also in the {other} data ({names})"
        self._say(leaked if self.others else f"compared with no {other} data, as none is in the folder")
        if counts["repeated"]:
            self._say(f"{_plural(counts['repeated'], 'question')} stood before in this set; they stay")
        if self.leaked and evaluates:
            raise DataError(
                f"{label}: {_plural(len(self.leaked), 'question')} of this set in "
                f"{', '.join(sorted(set(self.leaked.values())))}: what is trained on that file cannot be measured with "
                "this set. Delete that file, make this set, then that file again: what stands in an evaluation set in "
                "its folder is left out."
            )
        if self.longest:
            self._say(f"longest prompt {self.longest:,} tokens of {options.max_prompt_length:,} allowed")
        if not self.failures:
            return
        named = [f"row {index} {why}" for index, why in sorted(self.failures.items())[:NAMED_ROWS]]
        if len(self.failures) > NAMED_ROWS:
            named.append(f"and {len(self.failures) - NAMED_ROWS:,} more")
        message = f"{_plural(len(self.failures), 'row')} failed a check ({'; '.join(named)})"
        if evaluates and not options.allow_broken:
            raise DataError(
                f"{label}: {message}. A result over fewer questions is another result: fix them, or raise the limit. "
                "--allow-broken leaves them out."
            )
        if options.strict:
            raise DataError(f"{label}: {message}. Without --strict such rows are left out.")
        self._say(f"{message}: left out")
        if len(self.failures) == counts["asked"]:
            raise DataError(f"{label}: every row failed a check, so there is nothing to write.")

    def _say(self, line: str) -> None:
        self.report.append(f"{self.label}: {line}")


def _plural(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
