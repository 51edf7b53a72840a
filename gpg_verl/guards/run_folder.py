"""One run at a time in a folder of checkpoints, and what a folder holds for the next one.

Two runs that save to one folder overwrite each other's checkpoints, and each names its own the latest (veRL 0.9.1 does
not look). The lock is the kernel's: it ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import socket
from pathlib import Path

from omegaconf import DictConfig

from gpg_verl.compat.versions import LocalProblem
from gpg_verl.guards.checkpoints import TRACKER

LOCK = "gpg_run.lock"

_locks: dict[Path, object] = {}  # open as long as this process lives


def folder_of(config: DictConfig) -> Path:
    return Path(config.trainer.default_local_dir)  # as veRL takes it: a `~` is a folder's name


def saves(config: DictConfig) -> bool:
    return config.trainer.save_freq > 0 and not config.trainer.get("val_only", False)


def claim(config: DictConfig) -> list[str]:
    """Takes the run's folder for as long as this process lives; does nothing for a run that saves nothing.

    Returns what stands against it: another run is at work there, or it cannot be written to.
    """
    folder = folder_of(config)
    if not saves(config) or folder.resolve() in _locks:  # Hydra's multirun comes by several times
        return []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        return [_unwritable(folder, error)]
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return [
            f"trainer.default_local_dir={folder}: another run saves there ({_holder(lock)}), and two would overwrite "
            "each other's checkpoints; wait for its end, end it, or give this run a folder of its own"
        ]
    except OSError as error:
        print(
            f"gpg_verl: {folder} cannot be locked on its file system ({error}): a second run there goes unnoticed",
            flush=True,
        )
        return []
    _locks[folder.resolve()] = lock
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    try:
        lock.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, lock)
        lock.flush()
    except OSError as error:  # a full disk
        return [_unwritable(folder, error)]
    return []


def _unwritable(folder: Path, error: OSError) -> LocalProblem:
    return LocalProblem(
        f"trainer.default_local_dir={folder}: checkpoints cannot be written there ({error}); name a folder that can be "
        "written to, or save nothing with trainer.save_freq=-1"
    )


def _holder(lock) -> str:
    lock.seek(0)
    try:
        holder = json.loads(lock.read())
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError):
        return "it is just starting"


def last_saved(config: DictConfig) -> int | None:
    """The last step saved in the run's folder; None where there is none."""
    try:
        return int((folder_of(config) / TRACKER).read_text())
    except (OSError, ValueError):
        return None


def how_to_go_on(config: DictConfig) -> str:
    """What a run that ended before its time leaves, and how to go on."""
    trainer, step = config.trainer, last_saved(config)
    if step is None or not saves(config):
        return (
            f"no step is saved (trainer.save_freq={trainer.save_freq}), so the same command starts from the beginning."
        )
    where = f"step {step} is saved in {folder_of(config) / f'global_step_{step}'}"
    if trainer.resume_mode == "auto":
        return f"{where}; the same command goes on with step {step + 1}."
    return f"{where}; the same command with trainer.resume_mode=auto goes on with step {step + 1}."
