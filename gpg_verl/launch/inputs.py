"""What a run reads: its model and its data files, looked at before Ray starts. Each function returns what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from gpg_verl.compat.versions import NotHere
from gpg_verl.launch.settle import REWARD_FNS

REQUIRED_COLUMNS = ("data_source", "reward_model")


def model_problems(config: DictConfig) -> list[str]:
    path = OmegaConf.select(config, "actor_rollout_ref.model.path")
    if not path:
        return ["actor_rollout_ref.model.path is not set: give a folder with a Hugging Face model, or a hub id"]
    folder = Path(os.path.expanduser(path))
    looks_local = path.startswith(("/", ".", "~")) or folder.exists()
    if looks_local and not (folder / "config.json").is_file():
        found = "no such folder" if not folder.exists() else "a folder without config.json"
        kind = str if folder.exists() else NotHere
        return [kind(f"actor_rollout_ref.model.path={path}: expected a Hugging Face model folder, found {found}")]
    return []


def has_images(config: DictConfig) -> bool:
    """Whether prompts may hold images: the data has a column for them, or the model reads them. Without the network, so
    a hub's model with remote data is not known.
    """
    image_key = OmegaConf.select(config, "data.image_key") or "images"
    for split in ("train", "val"):
        given = OmegaConf.select(config, f"data.{split}_files")
        for name in list(given) if isinstance(given, ListConfig | list) else [given]:
            try:
                columns = _look_into(Path(os.path.expanduser(str(name))), config.data.prompt_key)[0]
            except _Unreadable:
                continue  # remote, or reported by data_problems
            if image_key in columns:
                return True
    file = Path(os.path.expanduser(OmegaConf.select(config, "actor_rollout_ref.model.path") or "")) / "config.json"
    try:
        return "vision_config" in json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # on the hub, or reported by model_problems


def data_problems(config: DictConfig, split: str) -> list[str]:
    """What is wrong with the files of `data.{split}_files`: missing, unreadable, without a column, too few rows."""
    key = f"data.{split}_files"
    given = OmegaConf.select(config, key)
    files = list(given) if isinstance(given, ListConfig | list) else [given]
    if OmegaConf.select(config, "data.custom_cls.path"):
        return []  # the user's own data set class reads what it likes
    problems: list[str] = []
    rows = 0
    for name in files:
        if not isinstance(name, str) or not name:
            problems.append(f"{key}={given}: expected the path of a parquet or jsonl file in veRL's format")
            continue
        if "://" in name:
            return problems  # remote, read by veRL
        try:
            columns, count, malformed = _look_into(Path(os.path.expanduser(name)), config.data.prompt_key)
        except _Unreadable as error:
            kind = str if os.path.exists(os.path.expanduser(name)) else NotHere
            problems.append(kind(f"{key}: {name}: {error}"))
            continue
        rows += count
        wanted = (config.data.prompt_key, *REQUIRED_COLUMNS)
        absent = [column for column in wanted if column not in columns]
        if absent:
            problems.append(
                f"{key}: {name}: expected the columns {', '.join(wanted)}, without {', '.join(absent)} "
                f"(found {', '.join(columns)}); veRL's format is described in its docs under 'Prepare data'"
            )
        elif malformed:
            problems.append(f"{key}: {name}: {malformed}")
    if split == "train" and not problems and rows < config.data.train_batch_size:
        problems.append(
            f"{key}: {rows} rows are fewer than data.train_batch_size={config.data.train_batch_size}: no step could be "
            "filled; use more rows or a smaller batch"
        )
    return problems


def source_problems(config: DictConfig, split: str) -> list[str]:
    """Data sources of sound files for which `reward_fns`, where it is what scores, has no entry: the first of each."""
    if OmegaConf.select(config, "reward.custom_reward_function.path") != REWARD_FNS:
        return []
    if OmegaConf.select(config, "data.custom_cls.path"):
        return []
    import pandas as pd

    from reward_fns.sources import UnknownDataSource, task_of

    given = OmegaConf.select(config, f"data.{split}_files")
    problems = []
    for name in list(given) if isinstance(given, ListConfig | list) else [given]:
        path = Path(os.path.expanduser(name))
        if not path.is_file():
            continue  # remote
        if path.suffix == ".parquet":
            sources = pd.read_parquet(path, columns=["data_source"])["data_source"]
        else:
            sources = pd.read_json(path, lines=True)["data_source"]
        for source in sources.unique():
            try:
                task_of(source)
            except UnknownDataSource as error:
                problems.append(f"data.{split}_files: {name}: {error}")
                break
    return problems


class _Unreadable(Exception):
    pass


def _look_into(path: Path, prompt_key: str) -> tuple[list[str], int, str | None]:
    """(columns, rows, what is malformed in the columns that veRL reads) of a data file; raises _Unreadable."""
    if not path.is_file():
        raise _Unreadable("no such file; make it, or correct the path")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                columns, count = file.schema_arrow.names, file.metadata.num_rows
                wanted = [column for column in (prompt_key, "reward_model") if column in columns]
                first = next(file.iter_batches(1, columns=wanted)).to_pylist()[0] if count else {}
        except (pyarrow.ArrowException, OSError) as error:
            raise _Unreadable(f"not a readable parquet file ({error}); write it again") from None
        return columns, count, _malformed(first, prompt_key)
    if path.suffix in (".json", ".jsonl"):
        with path.open(encoding="utf-8", errors="replace") as lines:
            line = lines.readline()
            count = 1 + sum(1 for line in lines if line.strip())
        try:
            first = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise _Unreadable(f"line 1 is not a JSON object ({error}); write one object a line") from None
        return list(first), count, _malformed(first, prompt_key)
    raise _Unreadable(f"veRL reads .parquet, .json and .jsonl, not {path.suffix or 'a file without suffix'}")


def _malformed(row: dict, prompt_key: str) -> str | None:
    """What veRL could not use in a row, judged by the first one."""
    prompt = row.get(prompt_key)
    if prompt_key in row and not (isinstance(prompt, list) and prompt and all("role" in m for m in prompt)):
        return (
            f"column {prompt_key} holds {str(prompt)[:60]!r}, expected a list of messages "
            '[{"role": "user", "content": "..."}]'
        )
    gold = row.get("reward_model")
    if "reward_model" in row and not (isinstance(gold, dict) and "ground_truth" in gold):
        return f'column reward_model holds {str(gold)[:60]!r}, expected {{"style": "rule", "ground_truth": "..."}}'
    return None
