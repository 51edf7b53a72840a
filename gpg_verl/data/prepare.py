"""One split of a data set: read, checked, turned into prompts and written.

In one pass, a row at a time: of 15,000 images only one group of rows is in memory. The file appears when the last row
has been seen and nothing speaks against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track

from gpg_verl.data import DataError, checks, images
from gpg_verl.data.dataset import DataSet, Question
from gpg_verl.data.images import MAX_PIXELS
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
    work = _Pass(data_set, split, options, [*options.against, *others])
    try:
        count = write(work.rows(), file, VISION_SCHEMA if data_set.images else TEXT_SCHEMA)
    except DataError:
        yield from work.said
        raise
    yield from work.said
    yield f"{work.label}: {_count(count, 'row')} written to {file}"


@dataclass
class _Pass:
    """The rows that pass, one after the other, and what was seen on the way."""

    data_set: DataSet
    split: str
    options: Options
    others: list[Path]  # the files on the other side: evaluation sets for training data, and the reverse
    said: list[str] = field(default_factory=list)
    read: int = 0  # rows of the source
    asked: int = 0  # questions taken from them
    parts: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)  # rows that are not like the set's, in words
    leaked: dict[int, str] = field(default_factory=dict)
    seen: set[checks.Identity] = field(default_factory=set)
    repeated: int = 0
    lengths: list[int] = field(default_factory=list)
    scaled: int = 0
    broken: int = 0

    @property
    def label(self) -> str:
        return f"{self.data_set.name} {self.split}"

    @property
    def evaluates(self) -> bool:
        return self.split != "train"

    def rows(self) -> Iterator[dict[str, object]]:
        known = checks.questions_of(self.others, self.data_set.images)
        for index, question in self._tracked():
            self.asked += 1
            if question.part:
                self.parts[question.part] += 1
            picture = None
            if self.data_set.images:
                try:
                    picture = images.load(question.image, self._folder(), self.options.max_pixels)
                except images.BrokenImage as error:
                    self.broken += 1
                    self.failures[index] = f"has an image that cannot be used ({error})"
                    continue
                self.scaled += picture.scaled
            row = verl_row(self.data_set, self.split, index, question, self.options.template, picture)
            if why := self._problem(index, question, picture, row, known):
                self.failures[index] = why
            else:
                yield row
        self._conclude()

    def _tracked(self) -> Iterable[tuple[int, Question]]:
        known = self.data_set.splits[self.split]
        total = self.options.limit or known.first or next(iter(known.rows), None)
        console = Console(stderr=True)
        what = f"{self.label}: rows"
        return track(self._questions(), what, total, console=console, transient=True, disable=not console.is_terminal)

    def _questions(self) -> Iterator[tuple[int, Question]]:
        """(the row's number, its question), of the levels and up to the number that were asked for."""
        options, data_set = self.options, self.data_set
        expand = data_set.splits[self.split].expand or (lambda row: [row])
        index = taken = 0
        for number, source_row in enumerate(load(data_set, self.split, options.source, options.revision)):
            try:
                questions = [data_set.read(row) for row in expand(source_row)]
            except DataError as error:
                self.failures[index] = f"cannot be read: {error}"
                self.unread.append(f"row {number}: {error}")
                if len(self.unread) == number + 1 == OTHER_DATA:
                    break
                self.read, self.asked, index = self.read + 1, self.asked + 1, index + 1
                continue
            numbered = [(i, q) for i, q in enumerate(questions, index) if self._belongs(q)]
            self.read += len(numbered) == len(questions)
            index += len(questions)
            for pair in numbered:
                if options.levels and pair[1].level not in options.levels:
                    continue
                yield pair
                taken += 1
                if taken == options.limit:
                    return
        if self.unread and index <= len(self.unread):
            raise DataError(f"{self.label}, {self.unread[0]}. Is this another data set?")

    def _belongs(self, question: Question) -> bool:
        """Rows of other levels are no part of the set; rows without one come from a file of its levels alone."""
        return not self.data_set.levels or question.level in (None, *self.data_set.levels)

    def _folder(self) -> Path | None:
        """Where the paths of images begin: --images, or the folder of the source."""
        if self.options.images or self.options.source is None:
            return self.options.images
        source = Path(self.options.source)
        return source if source.is_dir() else source.parent

    def _problem(self, index: int, question: Question, picture, row: dict[str, object], known) -> str | None:
        """The first thing that is wrong with a row, in words."""
        identity = checks.identity(question.text, picture)
        self.repeated += identity in self.seen
        self.seen.add(identity)
        if file := known.get(identity):
            self.leaked[index] = file
        tokens = self.options.length(row["prompt"], picture) if self.options.length else 0
        self.lengths.append(tokens)
        if file:
            return f"is in {file}"
        if not question.golds:
            return "has no gold answer"
        if why := audit.problem(row):
            return why
        return f"has {tokens:,} tokens" if self.options.length and tokens > self.options.max_prompt_length else None

    def _conclude(self) -> None:
        """What is to say of all rows; raises DataError if they must not be written."""
        options, label = self.options, self.label
        if not options.allow_count and options.limit is None:
            checks.check_count(self.data_set, self.split, self.read, self.parts)
        if not self.asked:
            asked = f"is of --level {' '.join(map(str, options.levels))}" if options.levels else "makes a question"
            raise DataError(f"{label}: none of the rows {asked} ({self.read:,} read).")
        self.said.append(f"{label}: {_count(self.read, 'row')} read{self._chosen()}")
        if not self.data_set.splits[self.split].rows:
            self.said.append(f"{label}: how many rows it should have is not known, so that is not checked")
        if self.data_set.images:
            seen, most = _count(self.asked, "image"), f"{options.max_pixels:,}"
            self.said.append(f"{label}: {seen}, {self.scaled:,} scaled down to {most} pixels, {self.broken:,} broken")
        self.said.append(f"{label}: {self._compared()}")
        if self.repeated:
            self.said.append(f"{label}: {_count(self.repeated, 'question')} stood before in this set; they stay")
        if self.leaked and self.evaluates:
            files = ", ".join(sorted(set(self.leaked.values())))
            raise DataError(
                f"{label}: {_count(len(self.leaked), 'question')} of this set in {files}: what is "
                "trained on that file cannot be measured with this set. Delete that file, make this set, then that "
                "file again: what stands in an evaluation set in its folder is left out."
            )
        if options.length and self.lengths:
            longest = f"{max(self.lengths):,} tokens of {options.max_prompt_length:,} allowed"
            self.said.append(f"{label}: longest prompt {longest}")
        if self.failures:
            self._judge_failures()

    def _judge_failures(self) -> None:
        message = f"{self.label}: {_named(self.failures)}"
        if self.evaluates and not self.options.allow_broken:
            raise DataError(
                f"{message}. A result over fewer questions is another result: fix them, or raise the limit. "
                "--allow-broken leaves them out."
            )
        if self.options.strict:
            raise DataError(f"{message}. Without --strict such rows are left out.")
        self.said.append(f"{message}: left out")
        if len(self.failures) == self.asked:
            raise DataError(f"{self.label}: every row failed a check, so there is nothing to write.")

    def _chosen(self) -> str:
        """The questions of --level and --limit, and of a set whose rows are not questions, in words."""
        options, words = self.options, ""
        if options.levels:
            words += f", {self.asked:,} of level {', '.join(map(str, options.levels))}"
        if options.limit is not None:
            words += f", the first {self.asked:,} taken"
        if self.data_set.splits[self.split].expand:
            words += f", {_count(self.asked, 'question')}"
        if self.parts:
            words += f" ({', '.join(f'{part} {count:,}' for part, count in sorted(self.parts.items()))})"
        return words

    def _compared(self) -> str:
        other = "training" if self.evaluates else "evaluation"
        if not self.others:
            return f"compared with no {other} data, as none is in the folder"
        names = ", ".join(file.name for file in self.others)
        return f"{_count(len(self.leaked), 'question')} also in the {other} data ({names})"


def _named(failures: dict[int, str]) -> str:
    named = [f"row {index} {why}" for index, why in sorted(failures.items())[:NAMED_ROWS]]
    rest = [f"and {len(failures) - NAMED_ROWS:,} more"] if len(failures) > NAMED_ROWS else []
    return f"{_count(len(failures), 'row')} failed a check ({'; '.join([*named, *rest])})"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
