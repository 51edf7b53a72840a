"""The guards around a run of veRL's V1 trainer: it waits for nobody who is dead, saves no half checkpoint, and loses no
row of its data without a word.

Knows veRL's trainer (0.9.1), not what it trains.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import ray

from gpg_verl.compat.seams import seam
from gpg_verl.guards.checkpoints import Checkpoints, resumed_folder
from gpg_verl.guards.dropped_rows import filter_watched
from gpg_verl.guards.heartbeat import Died, Heartbeat, Watch

REMOVE_SECONDS = 60.0  # to take a checkpoint from the disks of all nodes
ANSWER_SECONDS = 3.0  # to answer whether they live, where something has failed


class GuardedRun:
    """Mixed in before all other classes of a trainer, so that saving also covers what those write. It changes

    - waiting: every process whose work a step waits for is asked whether it lives (heartbeat.py),
    - saving: a checkpoint counts once it is complete, and an older one goes only then (checkpoints.py),
    - reading data: what veRL's filter drops is counted, and an error above a share (dropped_rows.py).

    max_dropped_share, max_dropped_share_key: the share that may be dropped, and the setting that says so, for messages;
        the trainer sets both before veRL reads the data.
    """

    max_dropped_share = 0.05
    max_dropped_share_key = "max_dropped_share"

    def __init__(self, config):
        self.checkpoints = Checkpoints.of(config, self._remove_checkpoint)
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

    # ---- waiting

    def _build_replay_buffer(self):
        buffer = super()._build_replay_buffer()
        seam(type(buffer), "_wait_for_next_poll", ("self", "partition_id", "last_debug_time"))
        self.heartbeat = Heartbeat(self._actors_waited_for)
        buffer._wait_for_next_poll = Watch(buffer, self.heartbeat)
        return buffer

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
        except Died:
            raise
        except Exception:
            # A death shows as whatever failed first for want of the dead.
            self.heartbeat.again(ANSWER_SECONDS)
            raise

    def on_sample_end(self):
        if self.replay_buffer.failure_keys["train"]:
            # Trained on otherwise, with what came back: veRL does not ask why prompts failed.
            self.heartbeat.again(ANSWER_SECONDS)
        super().on_sample_end()

    def on_step_end(self):
        self.heartbeat.during(super().on_step_end)

    # ---- saving

    def _load_checkpoint(self):
        super()._load_checkpoint()
        if self.global_steps > 0 and self.checkpoints is not None:
            folder, named = resumed_folder(self.config, self.global_steps)
            self.checkpoints.resumed_from(folder, self.global_steps, named)

    def _save_checkpoint(self):
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


def _make_remover(folder: str):
    """The removal, as a function that Ray ships by value."""

    def remove(_worker) -> None:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)

    return remove
