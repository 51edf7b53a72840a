"""One run at a time in a folder of checkpoints, and what a folder holds for the next one.

veRL (0.9.1) does not look. The lock is the kernel's: it ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import socket
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from gpg_verl.compat.versions import LocalProblem
from gpg_verl.guards.checkpoints import tracked_step

LOCK = "gpg_run.lock"

_locks: dict[Path, object] = {}  # open as long as this process lives


def folder_of(config: DictConfig) -> Path:
    """Where a run saves, as veRL takes it: a `~` is a folder's name."""
    return Path(config.trainer.default_local_dir)


def saves(config: DictConfig) -> bool:
    """Whether a run saves anything."""
    return config.trainer.save_freq > 0 and not config.trainer.get("val_only", False)


def claim(config: DictConfig) -> list[str]:
    """Takes the folder of a run that saves for as long as this process lives; returns what stands against it."""
    folder = folder_of(config)
    if not saves(config) or folder.resolve() in _locks:  # Hydra's multirun comes by several times
        return []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return [
                f"trainer.default_local_dir={folder}: another run saves there ({_holder(file)}), and two would "
                "overwrite each other's checkpoints; wait for its end, end it, or give this run a folder of its own"
            ]
        except OSError as error:  # some file systems know no locks, which stops no run
            print(f"gpg_verl: {file.name} cannot be locked ({error}): a second run there goes unnoticed", flush=True)
        _locks[folder.resolve()] = file
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, file)
        file.flush()
    except OSError as error:  # no right to write, or a full disk
        unwritable = f"trainer.default_local_dir={folder}: checkpoints cannot be written there ({error}); name a folder"
        return [LocalProblem(f"{unwritable} that can be written to, or save nothing with trainer.save_freq=-1")]
    return []


def _holder(file) -> str:
    file.seek(0)
    try:
        return "process {pid} on {host}, since {since}".format(**json.loads(file.read()))
    except (ValueError, KeyError):
        return "it is just starting"


def saved_step(config: DictConfig) -> int | None:
    """The step that the next run with this config would go on from; None where nothing is saved."""
    return tracked_step(folder_of(config)) if saves(config) else None


def how_to_go_on(config: DictConfig) -> str:
    """What a run that ended before its time leaves, and how to go on."""
    trainer, step = config.trainer, saved_step(config)
    if step is None:
        nothing = f"no step is saved (trainer.save_freq={trainer.save_freq})"
        return f"{nothing}, so the same command starts from the beginning."
    with_auto = "" if trainer.resume_mode == "auto" else " with trainer.resume_mode=auto"
    where = f"step {step} is saved in {folder_of(config) / f'global_step_{step}'}"
    return f"{where}; the same command{with_auto} goes on with step {step + 1}."


def how_to_export(config: DictConfig) -> str | None:
    """How what a run has trained becomes a model folder; None where nothing is saved, or not by FSDP."""
    step, strategy = saved_step(config), OmegaConf.select(config, "actor_rollout_ref.actor.strategy")
    if step is None or strategy not in ("fsdp", "fsdp2"):
        return None
    return f"step {step} is saved; as a model: python -m gpg_verl export {folder_of(config)}/global_step_{step} FOLDER"
