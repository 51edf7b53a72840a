"""The guards around a run of veRL's V1 trainer: it waits for nobody who is dead, saves no half checkpoint, and loses no
row of its data and no reward without a word.

Knows veRL's trainer (0.9.1), not what it trains.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

import ray

from gpg_verl.compat.seams import seam
from gpg_verl.guards.checkpoints import Checkpoints, resumed_folder
from gpg_verl.guards.dropped_rows import filter_watched
from gpg_verl.guards.liveness import Died, Heartbeat, Watch
from gpg_verl.guards.preemption import Leave, Preempted
from gpg_verl.guards.rewards import NoReward, first_unscored, rewards_checked
from gpg_verl.guards.run_folder import saves

REMOVE_SECONDS = 60.0  # to take a checkpoint from the disks of all nodes
ANSWER_SECONDS = 3.0  # to answer whether they live, where something has failed


class SessionsFailed(RuntimeError):
    """Too many of a step's sessions; names the first error, so that nothing else is looked for behind it."""


class GuardedRun:
    """Mixed in before all other classes of a trainer, so that saving also covers what those write. It changes

    - waiting: every process whose work a step waits for is asked whether it lives (liveness.py),
    - saving: a checkpoint counts once it is complete, and an older one goes only then (checkpoints.py),
    - leaving: asked to, it saves the step that it has done and ends (preemption.py),
    - reading data: what veRL's filter drops is counted, and an error above a share (dropped_rows.py),
    - scoring: a response without a reward has NaN, and an error of the step names its row (rewards.py).

    max_dropped_share, max_dropped_share_key: the share that may be dropped, and the setting that says so, for messages;
        the trainer sets both before veRL reads the data.
    drop_unscored, drop_unscored_key: the same of whether responses without a reward are left out, by the trainer.
    """

    max_dropped_share = 0.05
    max_dropped_share_key = "max_dropped_share"
    drop_unscored = False
    drop_unscored_key = "drop_unscored"

    def __init__(self, config):
        self.checkpoints = Checkpoints.of(config, self._remove_checkpoint)
        self.leave = Leave()
        self.saved_step = 0  # the last one saved, or resumed from
        super().__init__(config)

    def _init_dataloader(self):
        with filter_watched(self.max_dropped_share, self.max_dropped_share_key):
            super()._init_dataloader()
        if self.steps_per_epoch == 0:  # veRL would divide by it once the models are up
            data = self.config.data
            raise RuntimeError(
                f"{len(self.train_dataset)} rows of data.train_files={data.train_files} are left, fewer than "
                f"data.train_batch_size={data.train_batch_size}: no step could be filled. Use more rows, a smaller "
                "batch, or a filter that keeps more (data.max_prompt_length, data.train_max_samples)"
            )

    def _setup(self):
        with rewards_checked():
            super()._setup()

    # ---- waiting

    def _build_replay_buffer(self):
        buffer = super()._build_replay_buffer()
        seam(type(buffer), "_wait_for_next_poll", ("self", "partition_id", "last_debug_time"))
        self.heartbeat = Heartbeat(self._actors_waited_for)
        buffer._wait_for_next_poll = Watch(buffer, self._look_around)
        return buffer

    def _look_around(self):
        self.heartbeat()
        self.leave.while_waiting()

    def _actors_waited_for(self):
        """(name, handle) of every process whose work a step waits for."""
        yield from ((f"actor worker {i}", w) for i, w in enumerate(self.actor_rollout_wg.workers))
        if hasattr(self, "agent_loop_manager"):  # not before `fit`
            yield from ((f"agent-loop worker {i}", w) for i, w in enumerate(self.agent_loop_manager.agent_loop_workers))
        yield from ((f"reward worker {i}", w) for i, w in enumerate(self.get_reward_handles() or []))
        for manager in self._rollout_server_managers():
            for replica in manager.get_replicas():
                yield from ((f"rollout server {i}", s) for i, s in enumerate(replica.servers))

    def on_init_end(self):
        self.heartbeat.during(super().on_init_end)

    def fit(self, agent_loop_manager):
        try:
            super().fit(agent_loop_manager)
        except (Died, Preempted, SessionsFailed):
            raise
        except Exception as error:
            # A death shows as whatever failed first for want of the dead.
            self.heartbeat.again(ANSWER_SECONDS)
            self._explain(error)
            raise

    def _explain(self, error):
        """Raises what stands behind the error, where that is known better than where it showed."""
        buffer = self.replay_buffer
        for partition, whose in (("train", "step"), ("val", "validation")):
            if (failed := buffer.failure_keys[partition]) and not buffer.partitions[partition]:
                raise RuntimeError(all_failed(len(failed), whose)) from None
        if self.drop_unscored and not isinstance(error, NoReward):
            return
        said = first_unscored(self.reward_loop_manager.reward_loop_workers, ANSWER_SECONDS)
        if said is None:
            return
        if self.drop_unscored:
            raise RuntimeError(f"{error}; the first: {said}") from None
        raise RuntimeError(
            f"{said}. Let every response have a number, or leave those without one out of their groups with "
            f"+{self.drop_unscored_key}=True"
        ) from None

    def on_sample_end(self):
        if self.replay_buffer.failure_keys["train"]:
            # Trained on otherwise, with what came back: veRL does not ask why prompts failed.
            self.heartbeat.again(ANSWER_SECONDS)
        super().on_sample_end()

    def on_step_end(self):
        self.heartbeat.during(super().on_step_end)

    # ---- leaving

    def on_step_begin(self):
        if self.leave.between_steps():
            done = self.global_steps - 1
            if done > self.saved_step and saves(self.config):
                self.global_steps = done
                self._save_checkpoint()
            raise Preempted(f"asked to leave, after step {done}")
        super().on_step_begin()

    # ---- saving

    def _load_checkpoint(self):
        super()._load_checkpoint()
        self.saved_step = self.global_steps
        if self.global_steps > 0 and self.checkpoints is not None:
            folder, named = resumed_folder(self.config, self.global_steps)
            self.checkpoints.resumed_from(folder, self.global_steps, named)

    def _save_checkpoint(self):
        began = time.time()
        self._save_guarded()
        self.saved_step, self.leave.save_seconds = self.global_steps, time.time() - began

    def _save_guarded(self):
        if self.checkpoints is None:
            return super()._save_checkpoint()
        trainer = self.config.trainer
        keep, trainer.max_actor_ckpt_to_keep = trainer.max_actor_ckpt_to_keep, None  # old ones are removed here
        try:
            with self.checkpoints.saving(self.global_steps):
                super()._save_checkpoint()
        finally:
            trainer.max_actor_ckpt_to_keep = keep

    def _remove_checkpoint(self, folder: Path):
        shutil.rmtree(folder, ignore_errors=True)
        one_of_each_node = self.actor_rollout_wg.workers[:: self.config.trainer.n_gpus_per_node]
        removals = [worker.__ray_call__.remote(_make_remover(str(folder))) for worker in one_of_each_node]
        with contextlib.suppress(ray.exceptions.RayError):  # dead, or waiting for a rank whose save failed
            ray.get(removals, timeout=REMOVE_SECONDS)


def all_failed(prompts: int, whose: str) -> str:
    """Of a step, or a validation, whose prompts have no response at all."""
    return (
        f"all of the {whose}'s {prompts} prompts failed in the rollout, so there is nothing to go on with; the agent "
        "loop's errors above say why"
    )


def _make_remover(folder: str):
    """The removal, as a function that Ray ships by value."""

    def remove(_worker) -> None:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)

    return remove
