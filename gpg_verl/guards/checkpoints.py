"""Checkpoints that outlive a full disk, a kill and a cut file.

What a run would resume from is looked at before Ray starts (`resume_problems`), and a save counts only once it is
complete (`Checkpoints.saving`). veRL's layout (0.9.1):

    default_local_dir/latest_checkpointed_iteration.txt     the tracker: the step that a run resumes from
    default_local_dir/global_step_N/actor/{model,optim,extra_state}_world_size_W_rank_R.pt      with FSDP
    default_local_dir/global_step_N/data.pt                 the data loader's place in the data
    default_local_dir/global_step_N/transfer_queue/         in the asynchronous modes
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

TRACKER = "latest_checkpointed_iteration.txt"
SHARDS = {"model": "model", "optimizer": "optim", "extra": "extra_state"}  # veRL's contents: the file's first word
KEPT = "gpg_keep"  # an empty file in a checkpoint that is not removed for newer ones
RESUME_MODES = ("auto", "resume_path", "disable")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; says why, what is kept and how to go on."""


def named_ray(config: DictConfig | None) -> str | None:
    """The address of the Ray that a run is told to join; `local` starts one here."""
    named = OmegaConf.select(config, "ray_kwargs.ray_init.address") if config is not None else None
    return named or os.environ.get("RAY_ADDRESS")


def runs_elsewhere(config: DictConfig) -> bool:
    """Whether the run is sent to a Ray cluster that is there already, whose disks may be others than this machine's."""
    return named_ray(config) not in (None, "", "local")


def all_here(config: DictConfig) -> bool:
    """Whether this machine sees the files of every rank, so that one that is not there is missing."""
    return config.trainer.nnodes == 1 and not runs_elsewhere(config)


def faults(folder: Path, config: DictConfig) -> list[str]:
    """Why a run with this config could not resume from `folder`; empty where it can. Reads only the ends of files."""
    if not folder.is_dir():
        return ["no such folder"]
    actor, ranks = config.actor_rollout_ref.actor, config.trainer.nnodes * config.trainer.n_gpus_per_node
    # Which of FSDP's files every rank loads; other engines have a layout of their own.
    contents = OmegaConf.select(actor, "checkpoint.load_contents") if actor.strategy in ("fsdp", "fsdp2") else ()
    words = [SHARDS[content] for content in contents or () if content in SHARDS]
    found, shards = [], list((folder / "actor").glob("*_world_size_*_rank_*.pt"))
    written_by = {size for shard in shards for size in re.findall(r"_world_size_(\d+)_", shard.name)}
    if words and written_by and str(ranks) not in written_by:
        found.append(
            f"written by {' and '.join(sorted(written_by))} actor workers, and this run has {ranks} "
            "(trainer.nnodes × trainer.n_gpus_per_node), but FSDP's files are read by as many as wrote them "
            "(`python -m verl.model_merger merge --backend fsdp --local_dir .../actor --target_dir NEW` makes a model "
            "to start from)"
        )
    elif all_here(config):
        names = [f"actor/{word}_world_size_{ranks}_rank_{rank}.pt" for rank in range(ranks) for word in words]
        found += [f"{name} is missing" for name in names if not (folder / name).is_file()]
    if all_here(config) and not (folder / "data.pt").is_file():
        found.append("data.pt is missing, and veRL would begin the data again")
    files = [*shards, *folder.glob("*.pt"), *(folder / "transfer_queue").rglob("*.*")]
    return found + [f"{file.relative_to(folder)} {why}" for file in sorted(files) if (why := damage(file))]


def damage(file: Path) -> str | None:
    """What shows, at its end, that a file was cut off; None for a file that looks whole."""
    try:
        if file.suffix == ".pt":  # torch's files are zip archives, whose directory stands at the end
            zipfile.ZipFile(file).close()
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".pkl":
            with file.open("rb") as data:
                data.seek(-1, os.SEEK_END)
                if data.read() != pickle.STOP:
                    raise ValueError
    except (zipfile.BadZipFile, OSError, ValueError):
        return f"is cut off or damaged ({file.stat().st_size:,} bytes)"
    return None


def steps_in(directory: Path) -> list[int]:
    """The steps that have a folder in `directory`, complete or not, oldest first."""
    found = (re.fullmatch(r"global_step_(\d+)", folder.name) for folder in directory.glob("global_step_*"))
    return sorted(int(match[1]) for match in found if match)


def tracked_step(directory: Path) -> int | None:
    """The step that the tracker names; None where there is none, or half of it."""
    try:
        return int((directory / TRACKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def resume_problems(config: DictConfig) -> list[str]:
    """What is wrong with the checkpoint that this run would resume from. Another one is never taken in its place."""
    trainer = config.trainer
    if trainer.resume_mode == "disable":
        return []
    if trainer.resume_mode not in RESUME_MODES:
        return [f"trainer.resume_mode={trainer.resume_mode}: allowed are {', '.join(RESUME_MODES)}"]
    if trainer.resume_mode == "resume_path":
        path = str(trainer.resume_from_path)
        folder, where = Path(path), f"trainer.resume_from_path={path}"
        if not re.search(r"global_step_\d+$", path):
            return [f"{where}: expected the path of a folder global_step_N, no slash at its end"]
        if "://" in path or not (all_here(config) or folder.is_dir()):
            return []
        wrong = faults(folder, config)
    else:
        folder = Path(trainer.default_local_dir) / "global_step_N"
        tracker = folder.with_name(TRACKER)
        wrong, where = [], f"trainer.default_local_dir={trainer.default_local_dir}"
        if (step := tracked_step(folder.parent)) is not None:
            folder = folder.with_name(f"global_step_{step}")
            wrong, where = faults(folder, config), f"this run would resume from {folder}"
        elif tracker.exists():
            text = tracker.read_text(encoding="utf-8", errors="replace")[:20]
            where = f"{tracker} says which step to resume from, and holds {text!r}"
            wrong = ["it was cut off while it was written"]
        elif complete := _complete(folder.parent, config):
            over = f"over the complete step {complete[-1]}"
            wrong = [f"{TRACKER} is missing, so veRL would start again and write {over}"]
    if not wrong:
        return []
    again = "trainer.resume_mode=disable starts from the beginning, and writes over what is there"
    way = f"No step there can be resumed; {again}"
    if complete := _complete(folder.parent, config):
        last = f"{folder.parent}/global_step_{complete[-1]}"
        go_on = f"trainer.resume_mode=resume_path trainer.resume_from_path={last}"
        way = f"Step {complete[-1]} is complete: go on from there with {go_on}; {again}"
    return [f"{where}: {_some(wrong)}. {way}"]


def _complete(directory: Path, config: DictConfig) -> list[int]:
    return [step for step in steps_in(directory) if not faults(directory / f"global_step_{step}", config)]


def steps_written_over(config: DictConfig) -> list[str]:
    """A warning of older steps in the folder of a run that begins at the beginning."""
    trainer, steps = config.trainer, steps_in(Path(config.trainer.default_local_dir))
    if trainer.resume_mode != "disable" or trainer.save_freq <= 0 or not steps:
        return []
    return [
        f"trainer.resume_mode=disable: trainer.default_local_dir={trainer.default_local_dir} has steps of an earlier "
        f"run ({_some(list(map(str, steps)), ', ')}). This run begins at step 1, writes over those that it saves, and "
        "leaves the others; the latest step there is then its own. Name another folder to keep them apart"
    ]


def resumed_folder(config: DictConfig, step: int) -> tuple[Path, bool]:
    """(the folder that a run at `step` has resumed from, whether the user named it)."""
    if config.trainer.resume_mode == "resume_path":
        return Path(config.trainer.resume_from_path), True
    return Path(config.trainer.default_local_dir) / f"global_step_{step}", False


def _some(items: list[str], separator: str = "; ") -> str:
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return separator.join(items[:3]) + more


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def free_bytes(folder: Path) -> int:
    """Free for this user, on the disk where `folder` is or would be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class Checkpoints:
    """A run's checkpoints on the driver's disk, around veRL's own saving.

    veRL writes the tracker in place, which a full disk leaves empty; removes the last checkpoint, where one is kept,
    before the new one counts; forgets those from before a restart; and says of a full disk what torch says of it.

    Args:
        directory: trainer.default_local_dir.
        keep: trainer.max_actor_ckpt_to_keep; None for all, and what is not above 0.
        remove: takes a folder from every disk that the run saves to.
    """

    def __init__(self, directory: Path, keep: int | None, remove: Callable[[Path], None]):
        self.directory, self.remove = directory, remove
        self.keep = keep if keep and keep > 0 else sys.maxsize
        self.counted: list[Path] = []  # for `keep`, oldest first
        self.last_step: int | None = None  # the last one of this run, or the one that it goes on from
        self.needed = 0  # bytes that it takes

    @classmethod
    def of(cls, config: DictConfig, remove: Callable[[Path], None]) -> Checkpoints | None:
        """None where the workers go on writing after veRL's saving has returned (Megatron's `async_save`)."""
        if OmegaConf.select(config, "actor_rollout_ref.actor.checkpoint.async_save"):
            return None
        return cls(Path(config.trainer.default_local_dir), config.trainer.max_actor_ckpt_to_keep, remove)

    def resumed_from(self, folder: Path, step: int, named: bool) -> None:
        """The run goes on from `step` in `folder`, and what is there up to that step counts among those kept.

        Where the user named it, it and the newer ones, from which they went back, are marked: nobody counts them.
        """
        self.needed = bytes_of(folder)
        if folder.resolve().parent != self.directory.resolve():
            return
        self.last_step = step
        for other in steps_in(self.directory):
            there = self.directory / f"global_step_{other}"
            if named and other >= step:
                (there / KEPT).touch()
            if other <= step and not (there / KEPT).exists():
                self.counted.append(there)

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Around veRL's saving of `step`.

        Raises:
            CheckpointError: too little room, before anything is written; or what veRL could not write, after what was
                written is removed. The tracker then names the step that it named before.
        """
        folder, before = self.directory / f"global_step_{step}", tracked_step(self.directory)
        if folder.exists():
            # From before this run went back to an earlier step: half of it and half of the new would pass for whole.
            if before == step:
                before = self.last_step
                self._name(before)
            self.remove(folder)
        self._remove_all_but(max(self.keep - 1, 1))
        if (free := free_bytes(self.directory)) < self.needed:
            raise self._error(step, "there is too little room", free, before)
        try:
            yield
        except (OSError, RuntimeError) as error:
            if tracked_step(self.directory) == step:
                raise  # it is complete; what failed came after
            free = free_bytes(self.directory)
            self.remove(folder)
            self._name(before)
            cause = getattr(error, "cause", None) or error  # Ray hands on a worker's error with its traceback as text
            text = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            torch_says = "PytorchStreamWriter" in text or "inline_container" in text
            text += " (torch's words for a failed write, as on a full disk)" * torch_says
            raise self._error(step, f"{type(cause).__name__}: {text}", free, before) from None
        self.last_step, self.needed = step, bytes_of(folder)
        self.counted = [*(other for other in self.counted if other != folder), folder]
        self._remove_all_but(self.keep)

    def _name(self, step: int | None) -> None:
        """Makes the tracker name `step`, or be gone, where there is room: at any moment it names the old or the new."""
        tracker = self.directory / TRACKER
        with contextlib.suppress(OSError):
            if step is None:
                tracker.unlink(missing_ok=True)
            elif tracked_step(self.directory) != step:
                temporary = tracker.with_suffix(".new")
                with temporary.open("w", encoding="utf-8") as file:
                    file.write(str(step))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, tracker)

    def _remove_all_but(self, count: int) -> None:
        for folder in self.counted[:-count]:
            self.remove(folder)
        self.counted = self.counted[-count:]

    def _error(self, step: int, cause: str, free: int, before: int | None) -> CheckpointError:
        needed = f"; a checkpoint takes {self.needed:,}" if self.needed else ""
        kept = "No step before it is saved" if before is None else f"Step {before} is still complete"
        return CheckpointError(
            f"step {step} could not be saved in {self.directory}: {cause}. {free:,} bytes were free there{needed}. "
            f"{kept}. If room is what lacks: make some, keep fewer (trainer.max_actor_ckpt_to_keep; one more than kept "
            "must fit while it is written), or save elsewhere (trainer.default_local_dir)."
        )
