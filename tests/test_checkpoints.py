"""What a run resumes from is whole, and a save that fails costs nothing that was saved before it."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from omegaconf import OmegaConf

from gpg_verl.guards.checkpoints import (
    TRACKER,
    CheckpointError,
    Checkpoints,
    damage,
    faults,
    resume_problems,
    steps_written_over,
)
from gpg_verl.guards.exit import MAX_CAUSE_CHARS
from gpg_verl.launch.check import compose
from gpg_verl.launch.preflight import look

FILES = [f"actor/{name}_world_size_1_rank_0.pt" for name in ("model", "optim", "extra_state")] + ["data.pt"]


def save(folder: Path, step: int) -> Path:
    """Files as veRL writes them."""
    folder = folder / f"global_step_{step}"
    (folder / "actor").mkdir(parents=True)
    for name in FILES:
        torch.save({"weight": torch.full((1000,), float(step))}, folder / name)
    return folder


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.fixture
def directory(tmp_path) -> Path:
    """Steps 1 and 2, of which 2 is the latest."""
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / TRACKER).write_text("2")
    return tmp_path


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("harm", "said"), [(cut, "is cut off or damaged"), (os.unlink, "is missing")])
def test_every_file_that_is_read_is_looked_at(directory, tiny_config, name, harm, said):
    assert faults(directory / "global_step_2", tiny_config()) == []
    harm(directory / "global_step_2" / name)
    (fault,) = faults(directory / "global_step_2", tiny_config())
    assert fault.startswith(f"{name} {said}")


def test_the_last_byte_tells_a_cut(tmp_path):
    """However little is gone: of torch's archives, of the pickles and the JSON of the TransferQueue's state."""
    torch.save({"weight": torch.ones(10)}, tmp_path / "a.pt")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"partitions": {"train": list(range(100))}}))
    (tmp_path / "c.json").write_text('{"storage_saved": true}')
    for file in tmp_path.iterdir():
        assert damage(file) is None
        size = file.stat().st_size
        for left in (size - 1, size // 2, 0):
            os.truncate(file, left)
            assert "cut off" in damage(file)


@pytest.mark.parametrize(
    ("harm", "override", "expected"),
    [
        (None, "", []),
        ("cut actor/model_world_size_1_rank_0.pt", "", ["model_world_size_1_rank_0.pt is cut off", "{to_1}"]),
        ("cut data.pt", "", ["global_step_2: data.pt is cut off", "Step 1 is complete", "{to_1}"]),
        ("write ", "", [f"{TRACKER} says which step", "holds ''", "global_step_2"]),
        ("write 7", "", ["would resume from {dir}/global_step_7: no such folder", "Step 2 is complete"]),
        ("unlink", "", [f"{TRACKER} is missing", "start again", "write over the complete step 2"]),
        ("cut data.pt", "trainer.resume_mode=disable", []),
        ("cut data.pt", "{to_1}", []),
        ("cut data.pt", "{to_2}", ["resume_from_path={dir}/global_step_2: data.pt is cut off", "Step 1 is complete"]),
        (None, "trainer.resume_mode=resume_path", ["trainer.resume_from_path=None: expected", "global_step_N"]),
        (None, "{to_2}/", ["no slash at its end"]),
        (None, "trainer.resume_mode=latest", ["trainer.resume_mode=latest: allowed are auto, resume_path, disable"]),
        (None, "trainer.n_gpus_per_node=2", ["written by 1 actor workers, and this run has 2", "model_merger"]),
        (None, "trainer.nnodes=2", ["written by 1 actor workers, and this run has 2"]),
        ("unlink data.pt", "actor_rollout_ref.actor.checkpoint.load_contents=[model]", ["data.pt is missing"]),
        ("unlink actor/optim_world_size_1_rank_0.pt", "actor_rollout_ref.actor.checkpoint.load_contents=[model]", []),
        ("unlink data.pt", "+ray_kwargs.ray_init.address=head:6379", []),  # on the disks of another machine
    ],
)  # fmt: skip
def test_a_run_that_could_not_resume_does_not_start(harm, override, expected, directory, tiny_config):
    what, _, name = (harm or "").partition(" ")
    if what == "write":
        (directory / TRACKER).write_text(name)
    elif what:
        {"cut": cut, "unlink": os.unlink}[what](directory / (f"global_step_2/{name}" if name else TRACKER))
    to = "trainer.resume_mode=resume_path trainer.resume_from_path={dir}/global_step_"

    def filled(text: str) -> str:
        return text.format(to_1=f"{to}1", to_2=f"{to}2", dir="{dir}").format(dir=directory)

    settings = f"trainer.default_local_dir={directory} {filled(override)}".split()
    found = resume_problems(tiny_config(*settings))
    assert len(found) == bool(expected), found
    assert [text for text in map(filled, expected) if text not in found[0]] == []


def fill_the_disk(folder: Path, step: int) -> None:
    """veRL's saving up to the optimizer's state, which meets a device that is really full."""
    actor = folder / f"global_step_{step}/actor"
    actor.mkdir(parents=True)
    torch.save({"weight": torch.ones(1000)}, actor / "model_world_size_1_rank_0.pt")
    (actor / "optim_world_size_1_rank_0.pt").symlink_to("/dev/full")
    torch.save({"weight": torch.ones(1000)}, actor / "optim_world_size_1_rank_0.pt")


def write_the_tracker(folder: Path, step: int) -> None:
    save(folder, step)
    (folder / TRACKER).write_text("")  # truncated, and then there is no room for the number
    with open("/dev/full", "w", encoding="utf-8") as file:
        file.write(str(step))


@pytest.mark.parametrize(
    ("saves", "words"), [(fill_the_disk, "torch's words for a failed write"), (write_the_tracker, "No space left")]
)
@pytest.mark.parametrize("first", [False, True])
def test_a_full_disk_leaves_the_last_checkpoint(saves, words, first, directory, tmp_path):
    if first:
        directory = tmp_path / "first"
        directory.mkdir()
    with pytest.raises(CheckpointError) as error, Checkpoints(directory, 1, shutil.rmtree).saving(3):
        saves(directory, 3)
    message = str(error.value)
    assert words in message
    assert "step 3 could not be saved" in message
    assert "bytes were free there" in message
    assert len(message) < MAX_CAUSE_CHARS  # or gpg_verl's last words would lose its end
    assert ("No step before it is saved" if first else "Step 2 is still complete") in message
    left = [] if first else ["global_step_1", "global_step_2", TRACKER]
    assert sorted(path.name for path in directory.iterdir()) == left
    assert first or (directory / TRACKER).read_text() == "2"


def test_too_little_room_is_seen_before_anything_is_written(directory):
    for i in range(1000):  # files that are all hole: no disk has room for as much again
        (directory / f"global_step_2/{i}").touch()
        os.truncate(directory / f"global_step_2/{i}", 10**13)
    checkpoints = Checkpoints(directory, None, shutil.rmtree)
    checkpoints.resumed_from(directory / "global_step_2", 2, named=False)
    with pytest.raises(CheckpointError, match=r"too little room.*a checkpoint takes 10,000,"), checkpoints.saving(3):
        raise AssertionError("veRL's saving must not begin")


def steps(directory: Path) -> list[int]:
    return sorted(int(folder.name.split("_")[-1]) for folder in directory.glob("global_step_*"))


def run_on(directory: Path, keep: int | None, *, resumed: int | str | None, saves: list[int]) -> None:
    """A run that goes on from a step, named by the tracker or as a text by the user, and saves others until it ends."""
    checkpoints = Checkpoints(directory, keep, shutil.rmtree)
    if resumed is not None:
        named = isinstance(resumed, str)
        checkpoints.resumed_from(directory / f"global_step_{resumed}", int(resumed), named=named)
    for step in saves:
        tracked = (directory / TRACKER).read_text()
        with checkpoints.saving(step):
            assert tracked == str(step) or (directory / f"global_step_{tracked}/data.pt").exists()
            save(directory, step)
            (directory / TRACKER).write_text(str(step))
        assert (directory / TRACKER).read_text() == str(step)


@pytest.mark.parametrize(
    ("keep", "runs", "left"),
    [
        # (step that a run goes on from, steps that it saves); a text: the user named it. Steps 1 and 2 are there.
        (None, [(2, [3, 4])], [1, 2, 3, 4]),
        (-1, [(2, [3, 4])], [1, 2, 3, 4]),  # as veRL takes it
        (1, [(2, [3])], [3]),
        (2, [(2, [3])], [2, 3]),
        (3, [(2, [3])], [1, 2, 3]),
        # However often it is started again, K are left: also where nothing is saved in between, and of a smaller K.
        (1, [(2, [3, 4]), (4, [5]), (5, []), (5, [6, 7])], [7]),
        (2, [(2, [3, 4]), (4, [5]), (5, []), (5, [6, 7])], [6, 7]),
        (3, [(2, [3, 4, 5]), (5, [6, 7, 8]), (8, [9, 10, 11]), (11, [12, 13, 14])], [12, 13, 14]),
        # What the user named stays, also in later runs, and so do the steps from which they went back.
        (1, [("1", [3, 4])], [1, 2, 4]),
        (2, [("1", [3, 4, 5])], [1, 2, 4, 5]),
        (2, [("2", [3, 4, 5]), (5, [6, 7, 8])], [2, 7, 8]),
        (1, [(2, [3, 4]), ("4", [5]), (5, [6, 7])], [4, 7]),
        (1, [("1", [3]), (3, [4]), (4, [5])], [1, 2, 5]),
        # Newer ones without a name: a save that was cut off. They go once a run has come by.
        (1, [(1, [3, 4])], [2, 4]),
        (1, [(1, [3, 4]), (4, [5])], [5]),
        (1, [(1, [2, 3])], [3]),  # written over
        # A run that begins at the beginning counts its own.
        (1, [(None, [1, 3, 4])], [2, 4]),
    ],
)  # fmt: skip
def test_k_checkpoints_are_left_after_any_number_of_restarts(keep, runs, left, directory):
    config = OmegaConf.create({"actor_rollout_ref": {}, "trainer": {
        "default_local_dir": str(directory), "max_actor_ckpt_to_keep": keep,
    }})  # fmt: skip
    keep = Checkpoints.of(config, shutil.rmtree).keep
    for resumed, saves in runs:
        run_on(directory, keep, resumed=resumed, saves=saves)
    assert steps(directory) == left


def test_a_folder_elsewhere_is_not_this_runs(directory, tmp_path):
    """Named as what a run goes on from: nothing there is removed, and nothing here is taken for older steps of it."""
    other = save(tmp_path / "other", 5)
    checkpoints = Checkpoints(directory, 1, shutil.rmtree)
    checkpoints.resumed_from(other, 5, named=True)
    with checkpoints.saving(6):
        save(directory, 6)
    assert (steps(directory), steps(other.parent)) == ([1, 2, 6], [5])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.resume_mode=disable", "steps of an earlier run (1, 2). This run begins at step 1, writes over those"),
        ("trainer.resume_mode=disable trainer.save_freq=-1", None),
        ("trainer.resume_mode=disable trainer.default_local_dir={dir}/new", None),
        ("trainer.resume_mode=auto", None),
    ],
)
def test_a_run_that_begins_again_says_what_lies_there(override, said, directory, tiny_config):
    folder = f"trainer.default_local_dir={directory}"
    warnings = steps_written_over(tiny_config(folder, "trainer.save_freq=5", *override.format(dir=directory).split()))
    assert len(warnings) == (said is not None)
    assert said is None or f"trainer.resume_mode=disable: {folder} has {said}" in warnings[0]


def test_the_look_before_a_run_has_both(directory, tiny_folder):
    import verl  # noqa: F401  loads the plugin

    overrides = [*tiny.overrides(tiny_folder, prompts=4), f"trainer.default_local_dir={directory}"]
    begins_again = look(compose([*overrides, "trainer.resume_mode=disable", "trainer.save_freq=5"]), overrides)
    assert any("earlier run" in warning for warning in begins_again.warnings)
    cut(directory / "global_step_2/data.pt")
    assert "data.pt is cut off" in look(compose(overrides), overrides).contradictions[0]


def test_a_step_that_is_written_over_is_not_the_latest_meanwhile(directory):
    """Went back to step 1 by name: a run that is killed while it saves step 2 again continues from step 1."""
    checkpoints = Checkpoints(directory, 1, shutil.rmtree)
    checkpoints.resumed_from(directory / "global_step_1", 1, named=True)
    with checkpoints.saving(2):
        assert (directory / TRACKER).read_text() == "1"
        assert not (directory / "global_step_2").exists()
        save(directory, 2)
    assert (directory / "global_step_1").exists()  # named by the user


def test_what_fails_after_a_complete_save_takes_nothing_with_it(directory):
    """veRL calls `trainer.checkpoint_callback_class` last, and lets its errors end the run."""

    def save_and_upload():
        with Checkpoints(directory, None, shutil.rmtree).saving(3):
            save(directory, 3)
            (directory / TRACKER).write_text("3")
            raise RuntimeError("upload failed")

    with pytest.raises(RuntimeError, match="upload failed"):
        save_and_upload()
    assert (directory / "global_step_3/data.pt").exists()
