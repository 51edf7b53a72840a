"""The checks before a run: each takes the run's facts and returns one message, or None.

Three tuples say how much a message weighs. What CONTRADICTS is wrong wherever the run goes. What this machine LACKS
stops a run that does its work here, and is told where other machines do it. What WARNS stops nothing.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator

from omegaconf import ListConfig

from gpg_verl.guards.checkpoints import resume_problems, runs_elsewhere, steps_written_over
from gpg_verl.guards.run_folder import folder_of, saves
from gpg_verl.launch import code, machine
from gpg_verl.launch.data_files import DataFile, Split, is_prompt
from gpg_verl.launch.facts import Facts, model_folder
from gpg_verl.launch.prompts import PromptLengths
from gpg_verl.launch.settle import REWARD_FNS, REWARD_MANAGER
from gpg_verl.settings import GPGSettings

Check = Callable[[Facts], str | None]


def each_split(check: Callable[[Facts, Split], str | None]) -> tuple[Check, Check]:
    """A check of the training data and of the validation data."""
    return (lambda facts: check(facts, facts.train)), (lambda facts: check(facts, facts.val))


# ---- settings


def engine_without_settings(facts: Facts) -> str | None:
    engine = facts.get("actor_rollout_ref.actor.strategy")
    if engine not in ("megatron", "veomni", "torchtitan") or engine in facts.config.actor_rollout_ref.actor:
        return None
    return (
        f"actor_rollout_ref.actor.strategy={engine} alone has none of that engine's settings: set "
        f"model_engine={engine} instead"
    )


def no_rollout_engine(facts: Facts) -> str | None:
    if facts.get("actor_rollout_ref.rollout.name") is not None:
        return None
    key = "actor_rollout_ref.rollout.name"
    return f"{key} is not set: say which engine generates, e.g. {key}=vllm"


def no_micro_batch_size(facts: Facts) -> str | None:
    """veRL has no default for it, and would stop deep inside Ray."""
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    keys = (f"{actor}.ppo_micro_batch_size_per_gpu", f"{rollout}.log_prob_micro_batch_size_per_gpu")
    unset = [key for key in keys if facts.get(key) is None]
    if not unset or facts.get(f"{actor}.use_dynamic_bsz"):
        return None
    return f"{' and '.join(unset)} is not set: give a number of rows, or set {actor}.use_dynamic_bsz=True"


def unknown_logger(facts: Facts) -> str | None:
    from verl.utils.tracking import Tracking

    known = [*Tracking.supported_backend, *machine.LOGGERS]
    unknown = [name for name in machine.loggers_of(facts) if name not in known]
    return f"trainer.logger={unknown[0]}: known are {', '.join(Tracking.supported_backend)}" if unknown else None


def cannot_resume(facts: Facts) -> str | None:
    return "; ".join(resume_problems(facts.config)) or None


def older_steps(facts: Facts) -> str | None:
    return "; ".join(steps_written_over(facts.config)) or None


# ---- paths with a scheme (`s3://`, `hdfs://`), which veRL 0.9.1 takes in some places only
#
# Model and data: `hdfs://`, fetched by the command `hdfs` (verl.utils.fs); data also as `datasets` opens it, by fsspec.
# What a run writes is always a path of the machine: veRL makes a folder called `s3:` where each process stands.


MODELS = ("actor_rollout_ref.model.path", "actor_rollout_ref.model.tokenizer_path")
DATA = ("data.train_files", "data.val_files")


def remote_paths(facts: Facts, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(`key=path`, scheme) of every remote path behind these keys."""
    for key in keys:
        given = facts.get(key)
        for path in given if isinstance(given, ListConfig) else [given]:
            if isinstance(path, str) and "://" in path:
                yield f"{key}={path}", path.partition("://")[0]


def writes_to_a_scheme(facts: Facts) -> str | None:
    written = ["trainer.default_local_dir", "trainer.rollout_data_dir", "trainer.validation_data_dir"]
    if facts.get("trainer.resume_mode") == "resume_path":
        written.append("trainer.resume_from_path")
    for where, scheme in remote_paths(facts, written):
        return (
            f"{where}: veRL takes this for a folder called {scheme}: of each machine. Name one on a disk that all "
            "nodes share (NFS, Lustre, a mounted bucket), and copy from and to there"
        )
    return None


def writes_nothing_to_hdfs(facts: Facts) -> str | None:
    hdfs, strategy = facts.get("trainer.default_hdfs_dir"), facts.get("actor_rollout_ref.actor.strategy")
    if hdfs is None or not saves(facts.config) or strategy == "megatron":
        return None
    return (
        f"trainer.default_hdfs_dir={hdfs}: with actor.strategy={strategy} veRL copies nothing there; leave it out, "
        "and copy what is in trainer.default_local_dir"
    )


def unknown_scheme(facts: Facts) -> str | None:
    for where, scheme in remote_paths(facts, MODELS):
        if scheme != "hdfs":
            return f"{where}: veRL loads a folder, a hub's name or hdfs://; copy the model to a folder"
    for where, scheme in remote_paths(facts, () if facts.own_data_class else DATA):
        if scheme != "hdfs" and isinstance(error := _by_fsspec(scheme), ValueError):
            return f"{where}: {error}; copy the file to a disk"
    return None


def cannot_fetch(facts: Facts) -> str | None:
    data = list(remote_paths(facts, () if facts.own_data_class else DATA))
    for where, scheme in [*remote_paths(facts, MODELS), *data]:
        if scheme == "hdfs" and not shutil.which("hdfs"):
            return f"{where}: veRL fetches it by the command hdfs, which is not on the PATH; or copy it to a disk"
    for where, scheme in data:
        if isinstance(error := _by_fsspec(scheme), ImportError) and scheme != "hdfs":
            return f"{where}: {error} (pip, on every node), or copy the file to a disk"
    return None


def _by_fsspec(scheme: str) -> Exception | None:
    """Why `datasets` could not open a path with this scheme."""
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme)
    except (ValueError, ImportError) as error:
        return error
    return None


def relative_folder(facts: Facts) -> str | None:
    """A folder of checkpoints that is another one for each process."""
    folder = folder_of(facts.config)
    if folder.is_absolute() or not saves(facts.config) or not runs_elsewhere(facts.config):
        return None
    return (
        f"trainer.default_local_dir={folder} is relative, so each process on the cluster takes it from where it "
        "stands; give the absolute path of a folder that all nodes see"
    )


# ---- model


def no_model(facts: Facts) -> str | None:
    path = facts.get("actor_rollout_ref.model.path")
    if not path:
        return "actor_rollout_ref.model.path is not set: give a folder with a Hugging Face model, or a hub id"
    if not model_folder(facts.config).exists() or (model_folder(facts.config) / "config.json").is_file():
        return None
    return f"actor_rollout_ref.model.path={path}: expected a Hugging Face model folder, found one without config.json"


def missing_model(facts: Facts) -> str | None:
    path = facts.get("actor_rollout_ref.model.path") or ""
    if not path.startswith(("/", ".", "~")) or model_folder(facts.config).exists():
        return None  # a hub's name, or there
    return f"actor_rollout_ref.model.path={path}: expected a Hugging Face model folder, found no such folder"


# ---- data

VERLS_SCORER = "pkg://verl.utils.reward_score"


# What a value of a column must be, in words and as a test; a prompt's column has a name of the run's own.
PROMPT = ('a list of messages [{"role": "user", "content": "..."}]', is_prompt)
SOUND = {
    "data_source": ("the name of a data source", lambda value: value is not None),
    "reward_model": (
        '{"style": "rule", "ground_truth": "..."}',
        lambda value: isinstance(value, dict) and "ground_truth" in value,
    ),
    "extra_info": ("an object with names, or null", lambda value: value is None or isinstance(value, dict)),
}


def missing_files(facts: Facts, split: Split) -> str | None:
    return None if facts.own_data_class else "; ".join(split.missing) or None


def unreadable_files(facts: Facts, split: Split) -> str | None:
    return None if facts.own_data_class else "; ".join(split.unreadable) or None


def bad_rows(facts: Facts, split: Split) -> str | None:
    """The columns that are not there, or the first bad row of each that the run reads."""
    if facts.own_data_class:
        return None
    for file in split.files:
        if found := list(row_faults(facts, file)):
            return f"{split.key}: {file.name}: {'; '.join(found)}"
    return None


def row_faults(facts: Facts, file: DataFile) -> Iterator[str]:
    prompt, scored_by = facts.config.data.prompt_key, _scored_by(facts)
    wanted = (prompt, *scored_by)
    if absent := [column for column in wanted if column not in file.features]:
        yield (
            f"expected the columns {', '.join(wanted)}, without {', '.join(absent)} (found {', '.join(file.features)}"
            "); veRL's format is described in its docs under 'Prepare data'"
        )
        return
    scorer = facts.get("reward.custom_reward_function.path") or VERLS_SCORER
    by_source = "data_source" in wanted and scorer in (REWARD_FNS, VERLS_SCORER)
    for column in (*wanted, "extra_info"):
        if column not in file.columns or (column == "data_source" and not by_source):
            continue
        expected, sound = PROMPT if column == prompt else SOUND[column]
        for row, value in zip(file.looked_at, file.columns[column], strict=True):
            if not sound(value):
                held = "null" if value is None else repr(str(value)[:60])
                yield f"row {row}: column {column} holds {held}, expected {expected}"
                break
    if by_source and scorer == REWARD_FNS:
        yield from _unknown_source(file)


def _scored_by(facts: Facts) -> tuple[str, ...]:
    """The columns that the reward manager hands to what scores; none where that is not one of veRL's or ours."""
    reward = facts.config.reward
    if reward.reward_model.enable and not reward.custom_reward_function.path:
        return ()  # the model reads the conversation
    ours = facts.get("reward.reward_manager.module.path") == REWARD_MANAGER["module.path"]
    return ("data_source", "reward_model") if ours or reward.reward_manager.source == "register" else ()


def _unknown_source(file: DataFile) -> Iterator[str]:
    from reward_fns.sources import UnknownDataSource, task_of

    for source in dict.fromkeys(file.columns["data_source"]):
        try:
            if source is not None:
                task_of(source)
        except UnknownDataSource as error:
            yield str(error)
            return


def no_validation_rows(facts: Facts) -> str | None:
    if facts.own_data_class or not facts.val.complete or facts.val.rows:
        return None
    return f"{facts.val.key}: 0 rows, and veRL cannot start without any; name a file that has some"


def too_few_rows(facts: Facts) -> str | None:
    data, rows = facts.config.data, facts.train.rows
    if facts.own_data_class or not facts.train.complete:
        return None
    most, needed = data.get("train_max_samples", -1), "data.train_batch_size"
    kept = f"{rows} rows are"
    if 0 < most < rows:
        rows, kept = most, f"data.train_max_samples={most} is"
    if (data.get("gen_batch_size") or 0) > data.train_batch_size:
        needed = "data.gen_batch_size"
    if rows >= (size := facts.get(needed)):
        return None
    return (
        f"data.train_files: {kept} fewer than {needed}={size}: no step could be filled; use more rows or a smaller "
        "batch"
    )


def last_step(facts: Facts) -> str | None:
    """A number of steps that the epochs do not reach: veRL saves and validates at the last step by that number."""
    trainer, data, rows = facts.config.trainer, facts.config.data, facts.train.rows
    steps, epochs = trainer.total_training_steps, trainer.total_epochs
    if steps is None or not facts.train.complete or facts.own_data_class:
        return None
    most = data.get("train_max_samples", -1)
    rows = min(rows, most) if most > 0 else rows
    an_epoch = rows // data.train_batch_size
    if an_epoch == 0 or an_epoch * epochs >= steps:
        return None
    return (
        f"trainer.total_training_steps={steps} is not reached: {epochs} epochs of {rows} rows are {an_epoch * epochs} "
        "steps, and the last of them is neither saved nor validated for being the last; raise trainer.total_epochs to "
        f"{math.ceil(steps / an_epoch)} or more"
    )


def looked_at_a_part(facts: Facts, split: Split) -> str | None:
    parts = [
        f"{file.name} was looked at in {len(file.looked_at):,} of {file.rows:,} rows"
        for file in split.files
        if file.columns and len(file.looked_at) < file.rows
    ]
    return f"{split.key}: {'; '.join(parts)}" if parts else None


# ---- prompts that are too long


def _cut(facts: Facts, split: Split) -> tuple[str, bool] | None:
    """(what the rollout would cut of this split, whether it is more than the run's settings allow)."""
    lengths = facts.prompt_lengths[split.key]
    if not isinstance(lengths, PromptLengths) or not lengths.too_long:
        return None
    allowed = GPGSettings.from_node(facts.get("algorithm.gpg")).max_dropped_share
    share = lengths.too_long / lengths.looked_at
    of = f"{lengths.looked_at:,} rows" + (f" looked at ({lengths.rows:,} in all)" * (lengths.looked_at < lengths.rows))
    return (
        f"{split.key}: {lengths.too_long:,} of {of} ({share:.1%}) have a prompt of more than "
        f"data.max_prompt_length={lengths.limit} tokens, up to {lengths.longest}: veRL cuts the beginning off, and "
        "fails rows with images. data.filter_overlong_prompts=True leaves them out; or set "
        f"data.max_prompt_length={lengths.longest}"
    ), share > allowed


def most_prompts_cut(facts: Facts, split: Split) -> str | None:
    cut = _cut(facts, split)
    return f"{cut[0]}; +algorithm.gpg.max_dropped_share allows a larger share" if cut and cut[1] else None


def some_prompts_cut(facts: Facts, split: Split) -> str | None:
    cut = _cut(facts, split)
    return cut[0] if cut and not cut[1] else None


def prompts_not_counted(facts: Facts) -> str | None:
    reasons = {key: why for key, why in facts.prompt_lengths.items() if isinstance(why, str)}
    if not reasons:
        return None
    return (
        f"{' and '.join(reasons)}: prompts longer than data.max_prompt_length were not counted ("
        f"{'; '.join(dict.fromkeys(reasons.values()))}); veRL would cut their beginning off, and gpg/prompts_truncated "
        "counts them in every step"
    )


CONTRADICTS: tuple[Check, ...] = (
    machine.attention_to_a_part,
    engine_without_settings,
    no_rollout_engine,
    no_micro_batch_size,
    unknown_logger,
    writes_to_a_scheme,
    writes_nothing_to_hdfs,
    unknown_scheme,
    no_model,
    machine.small_weight_bucket,
    *each_split(unreadable_files),
    *each_split(bad_rows),
    no_validation_rows,
    too_few_rows,
    *each_split(most_prompts_cut),
    code.broken_code,
    code.unknown_agent_loop,
    code.reward_signature,
    cannot_resume,
)
LACKS: tuple[Check, ...] = (
    machine.no_vllm,
    machine.no_attention,
    machine.no_cupy,
    machine.too_little_memory,
    machine.too_few_cpus,
    machine.full_disk,
    machine.full_ray_disk,
    machine.no_logger_package,
    machine.no_wandb_login,
    missing_model,
    *each_split(missing_files),
    code.missing_code,
    cannot_fetch,
)
WARNS: tuple[Check, ...] = (
    last_step,
    *each_split(looked_at_a_part),
    *each_split(some_prompts_cut),
    prompts_not_counted,
    older_steps,
    relative_folder,
    machine.nearly_full_ray_disk,
)
