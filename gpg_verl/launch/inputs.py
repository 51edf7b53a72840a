"""What a run reads: its model, its data and its own Python files, judged before Ray starts.

Each function returns what is wrong.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import os
import symtable
import tokenize
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from gpg_verl.compat.versions import LocalProblem
from gpg_verl.launch.data_files import DataFile, Split
from gpg_verl.launch.settle import REWARD_FNS, REWARD_MANAGER

VERLS_SCORER = "pkg://verl.utils.reward_score"

# What veRL loads from a file or package of the user's: the keys of its path and of the name in it, and when it does.
CODE = (
    ("reward.custom_reward_function.path", "reward.custom_reward_function.name", lambda config: True),
    (
        "reward.reward_manager.module.path",
        "reward.reward_manager.name",
        lambda config: OmegaConf.select(config, "reward.reward_manager.source") == "importlib",
    ),
    ("data.custom_cls.path", "data.custom_cls.name", lambda config: True),
    (
        "trainer.v1.sampler.custom_sampler.path",
        "trainer.v1.sampler.custom_sampler.name",
        lambda config: OmegaConf.select(config, "trainer.v1.sampler.custom_sampler.name"),
    ),
)


def model_folder(config: DictConfig) -> Path:
    """Where the model is, if it is on this machine."""
    return Path(os.path.expanduser(OmegaConf.select(config, "actor_rollout_ref.model.path") or ""))


def model_config(config: DictConfig) -> dict:
    """What stands in the model's config.json; nothing of one on the hub, or that `model_problems` reports."""
    try:
        return json.loads((model_folder(config) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def model_problems(config: DictConfig) -> list[str]:
    path = OmegaConf.select(config, "actor_rollout_ref.model.path")
    if not path:
        return ["actor_rollout_ref.model.path is not set: give a folder with a Hugging Face model, or a hub id"]
    folder = model_folder(config)
    looks_local = path.startswith(("/", ".", "~")) or folder.exists()
    if looks_local and not (folder / "config.json").is_file():
        found = "no such folder" if not folder.exists() else "a folder without config.json"
        kind = str if folder.exists() else LocalProblem
        return [kind(f"actor_rollout_ref.model.path={path}: expected a Hugging Face model folder, found {found}")]
    return []


def has_images(config: DictConfig, splits: list[Split]) -> bool:
    """Whether prompts may hold images: the data has a column for them, or the model reads them. Without the network, so
    a hub's model with remote data is not known.
    """
    image_key = OmegaConf.select(config, "data.image_key") or "images"
    if any(image_key in file.features for split in splits for file in split.files):
        return True
    return "vision_config" in model_config(config)


def data_problems(config: DictConfig, train: Split, val: Split) -> list[str]:
    """What is wrong with the data: files, columns and rows that something reads, and too few rows.

    A data set class of the user's own reads what it likes.
    """
    if OmegaConf.select(config, "data.custom_cls.path"):
        return []
    problems = [*train.problems, *val.problems]
    for split in (train, val):
        for file in split.files:
            problems += [f"{split.key}: {file.name}: {fault}" for fault in _faults(config, file)]
    if val.counted and val.rows == 0:
        problems.append(f"{val.key}: 0 rows, and veRL cannot start without any; name a file that has some")
    if train.counted and not problems:
        problems += _too_few(config, train.rows)
    return problems


def _faults(config: DictConfig, file: DataFile) -> list[str]:
    """The first bad row of each column that the run reads, or the columns that are not there."""
    wanted = (config.data.prompt_key, *_scored_by(config))
    if absent := [column for column in wanted if column not in file.features]:
        found = ", ".join(file.features)
        return [
            f"expected the columns {', '.join(wanted)}, without {', '.join(absent)} (found {found}); "
            "veRL's format is described in its docs under 'Prepare data'"
        ]
    faults = [file.faults[column] for column in (*wanted, "extra_info") if column in file.faults]
    scorer = OmegaConf.select(config, "reward.custom_reward_function.path") or VERLS_SCORER
    if "data_source" in wanted and scorer in (REWARD_FNS, VERLS_SCORER) and None in file.sources:
        faults.append(f"row {file.sources[None]}: column data_source holds null, expected the name of a data source")
    if "data_source" in wanted and scorer == REWARD_FNS:
        faults += _unknown_source(file)
    return faults


def _scored_by(config: DictConfig) -> tuple[str, ...]:
    """The columns that the reward manager hands to what scores; none where that is not one of veRL's or ours."""
    reward = config.reward
    if reward.reward_model.enable and not reward.custom_reward_function.path:
        return ()  # the model reads the conversation
    ours = OmegaConf.select(config, "reward.reward_manager.module.path") == REWARD_MANAGER["module.path"]
    return ("data_source", "reward_model") if ours or reward.reward_manager.source == "register" else ()


def _unknown_source(file: DataFile) -> list[str]:
    from reward_fns.sources import UnknownDataSource, task_of

    for source in file.sources:
        try:
            if source is not None:
                task_of(source)
        except UnknownDataSource as error:
            return [str(error)]
    return []


def _too_few(config: DictConfig, rows: int) -> list[str]:
    data = config.data
    most, needed = data.get("train_max_samples", -1), "data.train_batch_size"
    kept = f"{rows} rows are"
    if 0 < most < rows:
        rows, kept = most, f"data.train_max_samples={most} is"
    if (data.get("gen_batch_size") or 0) > data.train_batch_size:
        needed = "data.gen_batch_size"
    if rows >= (size := OmegaConf.select(config, needed)):
        return []
    return [
        f"data.train_files: {kept} fewer than {needed}={size}: no step could be filled; use more rows or a smaller "
        "batch"
    ]


def samples(splits: list[Split]) -> list[str]:
    """Of which files only a part was looked at."""
    return [
        f"{split.key}: {file.name}: column {column} was looked at in {looked_at:,} of {file.rows:,} rows"
        for split in splits
        for file in split.files
        for column, looked_at in file.looked_at.items()
        if looked_at < file.rows and column not in file.faults
    ]


def last_step(config: DictConfig, train: Split) -> list[str]:
    """A number of steps that the epochs do not reach: veRL saves and validates at the last step by that number."""
    steps, epochs = config.trainer.total_training_steps, config.trainer.total_epochs
    if steps is None or not train.counted or OmegaConf.select(config, "data.custom_cls.path"):
        return []
    most = config.data.get("train_max_samples", -1)
    rows = min(train.rows, most) if most > 0 else train.rows
    an_epoch = rows // config.data.train_batch_size
    if an_epoch == 0 or an_epoch * epochs >= steps:
        return []
    return [
        f"trainer.total_training_steps={steps} is not reached: {epochs} epochs of {rows} rows are {an_epoch * epochs} "
        "steps, and the last of them is neither saved nor validated for being the last; raise trainer.total_epochs to "
        f"{math.ceil(steps / an_epoch)} or more"
    ]


def code_problems(config: DictConfig) -> list[str]:
    """What veRL could not load from the user's own Python files, found without running them."""
    problems = []
    for path_key, name_key, used in CODE:
        path, name = OmegaConf.select(config, path_key), OmegaConf.select(config, name_key)
        if path and used(config) and (problem := _why_not_loaded(path, name)):
            more = f"; name what it defines as {name_key}" if "does not define" in problem else ""
            kind = LocalProblem if "no such" in problem else str
            problems.append(kind(f"{path_key}={path}: {problem}{more}"))
    return problems


def _why_not_loaded(path: str, name: str | None) -> str | None:
    if path.startswith("pkg://"):
        try:
            spec = importlib.util.find_spec(path.removeprefix("pkg://").replace("/", "."))
        except Exception as error:  # whatever a package above it raises
            return f"cannot be imported ({type(error).__name__}: {error})"
        if spec is None:
            return "no such package; install it, or correct the name"
        if not (spec.origin or "").endswith(".py"):
            return None  # compiled, or without code of its own
        file = Path(spec.origin)
    else:
        file = Path(path.removeprefix("file://"))
        if not file.is_file():
            return "no such file; make it, or correct the path"
    try:
        with tokenize.open(file) as opened:
            text = opened.read()
        table, tree = symtable.symtable(text, str(file), "exec"), ast.parse(text)
    except (SyntaxError, ValueError, OSError) as error:
        return f"cannot be loaded ({type(error).__name__}: {error}); mend it"
    names = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    stars = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree))
    return None if stars or {name, "__getattr__"} & names else f"does not define {name}"
