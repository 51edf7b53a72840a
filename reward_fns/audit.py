"""Which rows of a data file no answer can ever be right for: gold answers that cannot be read, unknown data sources."""

import json
from collections.abc import Iterator
from pathlib import Path

from reward_fns import extract
from reward_fns.scoring import Settings, row_name, told
from reward_fns.sources import TASKS, UnknownDataSource, task_of
from reward_fns.verdict import Killed, UnparsableGold

MOST_NAMED = 10  # rows of one fault


class UnreadableFile(Exception):
    """A file that is not parquet or jsonl in veRL's format."""


def problem(row: dict) -> str | None:
    """What is wrong with a row of veRL's format; None if its answers can be scored."""
    source = row.get("data_source")
    try:
        task = task_of(source)
    except UnknownDataSource:
        return f"data_source={source!r} is unknown"
    gold = row["reward_model"].get("ground_truth")
    if task.check_gold is None:
        return None
    try:
        task.check_gold(gold, Settings())
    except UnparsableGold:
        return f"gold answer {gold!r:.200} cannot be read"
    except Killed as error:
        return f"reading gold answer {gold!r:.200} was stopped ({error.reason})"
    return None


def rows(path: Path) -> tuple[int, Iterator[dict]]:
    """(number of rows, the rows) of a parquet or jsonl file; raises UnreadableFile."""
    if not path.is_file():
        raise UnreadableFile(f"{path}: no such file")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise UnreadableFile(f"{path}: not a readable parquet file ({error})") from None
        columns = file.schema_arrow.names
        wanted = [column for column in ("data_source", "reward_model", "extra_info") if column in columns]
        if "reward_model" not in wanted or "data_source" not in wanted:
            raise UnreadableFile(
                f"{path}: expected veRL's columns data_source and reward_model, found {', '.join(columns)}"
            )
        return file.metadata.num_rows, _checked(path, _batches(path, file, wanted))
    if path.suffix in (".jsonl", ".json"):
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise UnreadableFile(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise UnreadableFile(f"{path}: not UTF-8 (byte {error.start}): write it again as UTF-8") from None
        # JSON has its own idea of a line: U+2028 and U+0085 may stand in a text as they are.
        lines = [line for line in text.split("\n") if line.strip()]
        return len(lines), _checked(path, map(_parsed, lines))
    raise UnreadableFile(f"{path}: expected .parquet or .jsonl in veRL's format")


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _batches(path: Path, file, columns: list[str]) -> Iterator[dict]:
    import pyarrow

    try:
        for batch in file.iter_batches(1024, columns=columns):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{path}: not a readable parquet file ({error})") from None


def _checked(path: Path, found: Iterator[object]) -> Iterator[dict]:
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict) or not isinstance(row.get("reward_model"), dict):
            raise UnreadableFile(
                f"{path}: row {number} is not an object with data_source and, as an object, reward_model: write one "
                "object a line, in veRL's format"
            )
        yield row


def main(files: list[Path]) -> int:
    from rich.console import Console
    from rich.progress import track

    console = Console(soft_wrap=True, markup=False, highlight=False)
    status = 0
    unknown = False
    for path in files:
        found: dict[str, list[str]] = {}  # the rows of each fault
        try:
            count, all_rows = rows(path)
            progress = track(
                all_rows, f"{path.name}", total=count, console=Console(stderr=True), transient=True, disable=count == 0
            )
            for number, row in enumerate(progress):
                if (wrong := problem(row)) is not None:
                    name = extract.showable(row_name(told(row.get("extra_info"))))
                    found.setdefault(wrong, []).append(f"{number}" + (f" (id {name})" if name else ""))
                    unknown = unknown or wrong.startswith("data_source")
        except (UnreadableFile, RuntimeError) as error:  # RuntimeError: the verifier does not start, say why
            console.print(extract.showable(str(error), 2000))
            status = 2
            continue
        for wrong, numbers in found.items():
            more = f" and {len(numbers) - MOST_NAMED} more" if len(numbers) > MOST_NAMED else ""
            these = "row" if len(numbers) == 1 else f"{len(numbers)} rows:"
            console.print(f"{path}: {these} {', '.join(numbers[:MOST_NAMED])}{more}: {wrong}")
        console.print(f"{path}: {count} rows, {sum(map(len, found.values()))} cannot be scored")
        status = max(status, 1 if found else 0)
    if unknown:
        console.print(f"Known data sources: {', '.join(TASKS)}")
    return status
