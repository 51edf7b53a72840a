"""The checks before a run: each takes the run's facts and yields its messages.

A message is a contradiction, wrong wherever the run goes, unless it says otherwise by its class: a LocalProblem is
what this machine lacks, told of a run whose work other machines do; an Advice stops nothing.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator

import fsspec
from omegaconf import ListConfig

from gpg_verl.compat.versions import LocalProblem
from gpg_verl.guards.checkpoints import resume_problems, runs_elsewhere, steps_written_over
from gpg_verl.guards.run_folder import folder_of, saves
from gpg_verl.launch import code, machine, prompts
from gpg_verl.launch.data_files import DataFile, is_prompt
from gpg_verl.launch.facts import Advice, Facts
from gpg_verl.launch.settle import ACTOR, REWARD_FNS, ROLLOUT

# ---- settings


def incomplete_settings(facts: Facts) -> Iterator[str]:
    engine, key = facts.get(f"{ACTOR}.strategy"), f"{ROLLOUT}.name"
    if engine in ("megatron", "veomni", "torchtitan") and facts.get(f"{ACTOR}.{engine}") is None:
        yield (f"{ACTOR}.strategy={engine} alone has none of that engine's settings: set model_engine={engine} instead")
    if facts.get(key) is None:
        yield f"{key} is not set: say which engine generates, e.g. {key}=vllm"
    # veRL has no default for these, and would stop deep inside Ray.
    sizes = (f"{ACTOR}.ppo_micro_batch_size_per_gpu", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu")
    unset = [size for size in sizes if facts.get(size) is None]
    if unset and not facts.get(f"{ACTOR}.use_dynamic_bsz"):
        yield f"{' and '.join(unset)} is not set: give a number of rows, or set {ACTOR}.use_dynamic_bsz=True"


def checkpoints(facts: Facts) -> Iterator[str]:
    yield from resume_problems(facts.config)
    yield from map(Advice, steps_written_over(facts.config))
    folder, hdfs = folder_of(facts.config), facts.get("trainer.default_hdfs_dir")
    if not saves(facts.config):
        return
    if hdfs is not None and (strategy := facts.get(f"{ACTOR}.strategy")) != "megatron":
        yield (
            f"trainer.default_hdfs_dir={hdfs}: with actor.strategy={strategy} veRL copies nothing there; leave it out, "
            "and copy what is in trainer.default_local_dir"
        )
    if not folder.is_absolute() and runs_elsewhere(facts.config):
        yield Advice(
            f"trainer.default_local_dir={folder} is relative, so each process on the cluster takes it from where it "
            "stands; give the absolute path of a folder that all nodes see"
        )


# ---- paths with a scheme (`s3://`, `hdfs://`), which veRL 0.9.1 takes in some places only: what a run writes is always
# a path of the machine. Model and data may be `hdfs://`, fetched by the command `hdfs` (verl.utils.fs); data also what
# `datasets` opens by fsspec.

WRITTEN = ("trainer.default_local_dir", "trainer.rollout_data_dir", "trainer.validation_data_dir")
MODELS = ("actor_rollout_ref.model.path", "actor_rollout_ref.model.tokenizer_path")
DATA = ("data.train_files", "data.val_files")


def remote_paths(facts: Facts) -> Iterator[str]:
    resumed = ("trainer.resume_from_path",) if facts.get("trainer.resume_mode") == "resume_path" else ()
    for key in (*WRITTEN, *resumed, *MODELS, *(DATA if facts.splits else ())):
        given = facts.get(key)
        for path in given if isinstance(given, ListConfig) else [given]:
            scheme, is_remote, _ = str(path).partition("://")
            if is_remote and (fault := _unfit_scheme(key, scheme)):
                yield type(fault)(f"{key}={path}: {fault}")


def _unfit_scheme(key: str, scheme: str) -> str | None:
    if key not in (*MODELS, *DATA):
        return (
            f"veRL takes this for a folder called {scheme}: of each machine. Name one on a disk that all nodes share "
            "(NFS, Lustre, a mounted bucket), and copy from and to there"
        )
    if scheme == "hdfs":
        why = LocalProblem("veRL fetches it by the command hdfs, which is not on the PATH; or copy it to a disk")
        return None if shutil.which("hdfs") else why
    if key in MODELS:
        return "veRL loads a folder, a hub's name or hdfs://; copy the model to a folder"
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError as error:
        return f"{error}; copy the file to a disk"
    except ImportError as error:
        return LocalProblem(f"{error} (pip, on every node), or copy the file to a disk")
    return None


# ---- model


def model(facts: Facts) -> Iterator[str]:
    path, folder = facts.get("actor_rollout_ref.model.path"), facts.folder
    expected = f"actor_rollout_ref.model.path={path}: expected a Hugging Face model folder, found"
    if not path:
        yield "actor_rollout_ref.model.path is not set: give a folder with a Hugging Face model, or a hub id"
    elif folder.exists() and not (folder / "config.json").is_file():
        yield f"{expected} one without config.json"
    elif path.startswith(("/", ".", "~")) and not folder.exists():  # not a hub's name
        yield LocalProblem(f"{expected} no such folder")


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


def data(facts: Facts) -> Iterator[str]:
    """What is wrong with the files, and in each the columns that are not there or the first bad row."""
    for split in facts.splits:
        yield from split.problems
        for file in split.files:
            if found := list(row_faults(facts, file)):
                yield f"{split.key}: {file.name}: {'; '.join(found)}"
            if file.columns and len(file.looked_at) < file.rows:
                part = f"was looked at in {len(file.looked_at):,} of {file.rows:,} rows"
                yield Advice(f"{split.key}: {file.name} {part}")


def row_faults(facts: Facts, file: DataFile) -> Iterator[str]:
    prompt, scorer = facts.get("data.prompt_key"), facts.get("reward.custom_reward_function.path") or VERLS_SCORER
    # What a reward manager that is not known hands on is not known; a reward model reads the conversation.
    reads_no_columns = facts.get("reward.reward_model.enable") and scorer == VERLS_SCORER
    scored = facts.known_reward_manager and not reads_no_columns
    wanted = (prompt, *(("data_source", "reward_model") if scored else ()))
    if absent := [column for column in wanted if column not in file.features]:
        yield (
            f"expected the columns {', '.join(wanted)}, without {', '.join(absent)} (found {', '.join(file.features)}"
            "); veRL's format is described in its docs under 'Prepare data'"
        )
        return
    by_source = scored and scorer in (REWARD_FNS, VERLS_SCORER)
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
        from reward_fns.sources import UnknownDataSource, task_of

        try:
            for source in dict.fromkeys(filter(None, file.columns["data_source"])):
                task_of(source)
        except UnknownDataSource as error:
            yield str(error)


def number_of_rows(facts: Facts) -> Iterator[str]:
    """Too few for a step, or for the number of steps: veRL saves and validates at the last step by that number."""
    if not facts.splits:
        return
    train, val = facts.splits
    if val.complete and not val.rows:
        yield f"{val.key}: 0 rows, and veRL cannot start without any; name a file that has some"
    if not train.complete:
        return
    settings, trainer = facts.config.data, facts.config.trainer
    most, rows, kept = settings.get("train_max_samples", -1), train.rows, f"{train.rows} rows are"
    if 0 < most < rows:
        rows, kept = most, f"data.train_max_samples={most} is"
    a_step = max(("data.train_batch_size", "data.gen_batch_size"), key=lambda key: facts.get(key) or 0)
    if rows < facts.get(a_step):
        yield (
            f"data.train_files: {kept} fewer than {a_step}={facts.get(a_step)}: no step could be filled; use more rows "
            "or a smaller batch"
        )
    an_epoch, steps = rows // settings.train_batch_size, trainer.total_training_steps
    reached = an_epoch * trainer.total_epochs
    if steps is not None and 0 < reached < steps:
        yield Advice(
            f"trainer.total_training_steps={steps} is not reached: {trainer.total_epochs} epochs of {rows} rows are "
            f"{reached} steps, and the last of them is neither saved nor validated for being the last; raise "
            f"trainer.total_epochs to {math.ceil(steps / an_epoch)} or more"
        )


CHECKS: tuple[Callable[[Facts], Iterator[str]], ...] = (
    incomplete_settings,
    checkpoints,
    remote_paths,
    model,
    data,
    number_of_rows,
    prompts.long_prompts,
    code.unusable_code,
    code.unknown_agent_loop,
    code.reward_signature,
    machine.attention,
    machine.packages,
    machine.memory,
    machine.cpus,
    machine.disks,
    machine.loggers,
)
