"""Which rows of a data file no answer can ever be right for: gold answers that cannot be read, unknown data sources."""

import json
from pathlib import Path

from reward_fns import extract
from reward_fns.scoring import Settings, parse_extra_info, row_name
from reward_fns.sources import TASKS, UnknownDataSource, task_of
from reward_fns.verdict import Killed, UnparsableGold

MOST_NAMED = 10  # rows of one fault


class UnreadableFile(Exception):
    """A file that is not parquet or jsonl in veRL's format."""


def problem(row: dict) -> str | None:
    """What is wrong with a row of veRL's format; None if its answers can be scored."""
    source = row.get("data_source")
    gold = row["reward_model"].get("ground_truth")
    try:
        check_gold = task_of(source).check_gold
        if check_gold is not None:
            check_gold(gold, Settings())
    except UnknownDataSource:
        return f"data_source={source!r} is unknown"
    except UnparsableGold:
        return f"gold answer {gold!r:.200} cannot be read"
    except Killed as error:
        return f"reading gold answer {gold!r:.200} was stopped ({error.reason})"
    return None


def rows(path: Path) -> list[dict]:
    """The rows of a parquet or jsonl file; raises UnreadableFile."""
    if not path.is_file():
        raise UnreadableFile(f"{path}: no such file")
    readers = {".parquet": _parquet, ".jsonl": _jsonl, ".json": _jsonl}
    if path.suffix not in readers:
        raise UnreadableFile(f"{path}: expected .parquet or .jsonl in veRL's format")
    found = readers[path.suffix](path)
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict) or not isinstance(row.get("reward_model"), dict):
            raise UnreadableFile(
                f"{path}: row {number} is not an object with data_source and, as an object, reward_model: write one "
                "object a line, in veRL's format"
            )
    return found


def _parquet(path: Path) -> list[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        if not {"reward_model", "data_source"} <= set(columns):
            raise UnreadableFile(
                f"{path}: expected veRL's columns data_source and reward_model, found {', '.join(columns)}"
            )
        wanted = [column for column in ("data_source", "reward_model", "extra_info") if column in columns]
        return file.read(wanted).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{path}: not a readable parquet file ({error})") from None


def _jsonl(path: Path) -> list[object]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"{path}: not UTF-8 (byte {error.start}): write it again as UTF-8") from None
    found: list[object] = []
    for line in text.split("\n"):  # JSON has its own idea of a line: U+2028 and U+0085 may stand in a text as they are
        try:
            found += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError):
            found.append(None)
    return found


def main(files: list[Path]) -> int:
    from rich.console import Console
    from rich.progress import track

    console = Console(soft_wrap=True, markup=False, highlight=False)
    status, unknown = 0, False
    for path in files:
        found: dict[str, list[str]] = {}  # the rows of each fault
        try:
            all_rows = rows(path)
            hidden = {"console": Console(stderr=True), "transient": True, "disable": not all_rows}
            for number, row in enumerate(track(all_rows, path.name, **hidden)):
                if (wrong := problem(row)) is not None:
                    name = extract.showable(row_name(parse_extra_info(row.get("extra_info"))))
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
        console.print(f"{path}: {len(all_rows)} rows, {sum(map(len, found.values()))} cannot be scored")
        status = max(status, 1 if found else 0)
    if unknown:
        console.print(f"Known data sources: {', '.join(TASKS)}")
    return status
