"""Paths with a scheme (`s3://`, `hdfs://`), which veRL 0.9.1 takes in some places only, looked at before Ray starts.

Model and data: `hdfs://`, fetched by the command `hdfs` (verl.utils.fs); data also as `datasets` opens it, by fsspec.
What a run writes is always a path of the machine: veRL makes a folder called `s3:` where each process stands.
"""

from __future__ import annotations

import shutil

from omegaconf import DictConfig, ListConfig, OmegaConf

from gpg_verl.compat.versions import LocalProblem
from gpg_verl.guards.checkpoints import runs_elsewhere
from gpg_verl.guards.run_folder import folder_of, saves

WRITTEN = ("trainer.default_local_dir", "trainer.rollout_data_dir", "trainer.validation_data_dir")
MODELS = ("actor_rollout_ref.model.path", "actor_rollout_ref.model.tokenizer_path")
DATA = ("data.train_files", "data.val_files")


def scheme_of(path) -> str | None:
    """`s3` of `s3://bucket/file`; None for a path of the machine."""
    scheme, found, _ = path.partition("://") if isinstance(path, str) else ("", "", "")
    return scheme if found else None


def remote_problems(config: DictConfig) -> list[str]:
    """What veRL would not fetch, and what it would write elsewhere than it says."""
    problems = []
    written = [*WRITTEN, *(["trainer.resume_from_path"] if config.trainer.resume_mode == "resume_path" else [])]
    for key, path, scheme in _remote(config, written):
        problems.append(
            f"{key}={path}: veRL takes this for a folder called {scheme}: of each machine. Name one on a disk that all "
            "nodes share (NFS, Lustre, a mounted bucket), and copy from and to there"
        )
    for key, path, scheme in _remote(config, MODELS):
        if scheme == "hdfs":
            problems += _by_command(key, path)
        else:
            problems.append(f"{key}={path}: veRL loads a folder, a hub's name or hdfs://; copy the model to a folder")
    if not OmegaConf.select(config, "data.custom_cls.path"):  # which reads what it likes
        for key, path, scheme in _remote(config, DATA):
            problems += _by_command(key, path) if scheme == "hdfs" else _by_fsspec(key, path, scheme)
    hdfs, strategy = config.trainer.get("default_hdfs_dir"), config.actor_rollout_ref.actor.strategy
    if hdfs is not None and saves(config) and strategy != "megatron":
        problems.append(
            f"trainer.default_hdfs_dir={hdfs}: with actor.strategy={strategy} veRL copies nothing there; leave it out, "
            "and copy what is in trainer.default_local_dir"
        )
    return problems


def relative_folder(config: DictConfig) -> list[str]:
    """A warning of a folder of checkpoints that is another one for each process."""
    folder = folder_of(config)
    if folder.is_absolute() or not saves(config) or not runs_elsewhere(config):
        return []
    return [
        f"trainer.default_local_dir={folder} is relative, so each process on the cluster takes it from where it "
        "stands; give the absolute path of a folder that all nodes see"
    ]


def _remote(config: DictConfig, keys):
    """(key, path, scheme) of every remote path."""
    for key in keys:
        given = OmegaConf.select(config, key)
        for path in given if isinstance(given, ListConfig) else [given]:
            if (scheme := scheme_of(path)) is not None:
                yield key, path, scheme


def _by_command(key: str, path: str) -> list[str]:
    if shutil.which("hdfs"):
        return []
    return [
        LocalProblem(
            f"{key}={path}: veRL fetches it by the command hdfs, which is not on the PATH; or copy it to a disk"
        )
    ]


def _by_fsspec(key: str, path: str, scheme: str) -> list[str]:
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError as error:
        return [f"{key}={path}: {error}; copy the file to a disk"]
    except ImportError as error:
        return [LocalProblem(f"{key}={path}: {error} (pip, on every node), or copy the file to a disk")]
    return []
