"""The guards around a run of veRL's V1 trainer (0.9.1), whatever it trains."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

import ray

from gpg_verl.compat.seams import TrainerMixin
from gpg_verl.guards import rewards
from gpg_verl.guards.checkpoints import Checkpoints, resumed_folder
from gpg_verl.guards.dropped_rows import filter_watched
from gpg_verl.guards.exit import Leave, Preempted
from gpg_verl.guards.liveness import Died, Heartbeat, watch
from gpg_verl.guards.run_folder import saves

REMOVE_SECONDS = 60.0  # to take a checkpoint from the disks of all nodes
ANSWER_SECONDS = 3.0  # to answer whether they live, where something has failed


class SessionsFailed(RuntimeError):
    """Too many of a step's sessions; names the first error, so that nothing else is looked for behind it."""


class GuardedRun(TrainerMixin):
    """Mixed in before all other classes of a trainer, so that saving also covers what those write. It changes

    - waiting: every process whose work a step waits for is asked whether it lives (liveness.py),
    - saving: a checkpoint counts once it is complete, and an older one goes only then (checkpoints.py),
    - leaving: asked to, it saves the step that it has done and ends (exit.py),
    - reading data: what veRL's filter drops is counted, and an error above a share (dropped_rows.py),
    - scoring: a response without a reward has NaN, and an error of the step names its row (rewards.py).

    max_dropped_share, max_dropped_share_key: the share that may be dropped, and the setting that says so, for messages.
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
        self.named_without_mean = ""  # keys of the reward, said once
        super().__init__(config)

    def _init_dataloader(self):
        with filter_watched(self.max_dropped_share, self.max_dropped_share_key):
            super()._init_dataloader()
        if self.steps_per_epoch == 0:  # veRL would divide by it once the models are up
            data, rows = self.config.data, len(self.train_dataset)
            raise RuntimeError(
                f"{rows} rows of data.train_files={data.train_files} are left, fewer than data.train_batch_size="
                f"{data.train_batch_size}: no step could be filled. Use more rows, a smaller batch, or a filter that "
                "keeps more (data.max_prompt_length, data.train_max_samples)"
            )

    def _setup(self):
        with rewards.rewards_checked():
            super()._setup()

    # ---- waiting

    def _build_replay_buffer(self):
        buffer = super()._build_replay_buffer()
        self.heartbeat = Heartbeat(self._actors_waited_for)
        watch(buffer, self._look_around)
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
        began_at = self.global_steps
        try:
            super().fit(agent_loop_manager)
        except (Died, Preempted, SessionsFailed):
            raise
        except Exception as error:
            # The first error is often a side effect of a dead process.
            self.heartbeat.again(ANSWER_SECONDS)
            self._explain(error)
            raise
        if self.global_steps == began_at + 1:  # veRL counts one before its first step
            print(already_finished(self.config.trainer, began_at), flush=True)

    def _explain(self, error):
        """Raises what stands behind the error, where that is known better than where it showed."""
        buffer = self.replay_buffer
        for partition, whose in (("train", "step"), ("val", "validation")):
            if (failed := buffer.failure_keys[partition]) and not buffer.partitions[partition]:
                raise RuntimeError(all_failed(len(failed), whose)) from None
        if self.drop_unscored and not isinstance(error, rewards.NoReward):
            return
        if first := rewards.first_unscored(self.reward_loop_manager.reward_loop_workers, ANSWER_SECONDS):
            if self.drop_unscored:
                raise RuntimeError(f"{error}; the first: {first}") from None
            fix = "Let every response have a number, or leave those without one out of their groups with"
            raise RuntimeError(f"{first}. {fix} +{self.drop_unscored_key}=True") from None

    def on_sample_end(self):
        if self.replay_buffer.failure_keys["train"]:
            # Trained on otherwise, with what came back: veRL does not ask why prompts failed.
            self.heartbeat.again(ANSWER_SECONDS)
        super().on_sample_end()

    def on_step_end(self):
        self.heartbeat.during(super().on_step_end)

    def _val_metrics_update(self, data_sources, sample_uids, reward_extra_infos_dict, *args, **kwargs):
        """veRL takes a mean of every key of a reward but texts, and ends with a TypeError where there is none."""
        without = {key: rewards.without_mean(values) for key, values in reward_extra_infos_dict.items()}
        named = ", ".join(f"{key} ({kinds})" for key, kinds in without.items() if kinds)
        if named and named != self.named_without_mean:
            print(f"gpg_verl: the validation's metrics are without these keys of the reward: {named}", flush=True)
        self.named_without_mean = named
        infos = {key: values for key, values in reward_extra_infos_dict.items() if without[key] is None}
        return super()._val_metrics_update(data_sources, sample_uids, infos, *args, **kwargs)

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
        began, trainer = time.time(), self.config.trainer
        keep = trainer.max_actor_ckpt_to_keep
        saving = contextlib.nullcontext()
        if self.checkpoints is not None:  # which removes the old ones in veRL's place
            saving, trainer.max_actor_ckpt_to_keep = self.checkpoints.saving(self.global_steps), None
        try:
            with saving:
                super()._save_checkpoint()
        finally:
            trainer.max_actor_ckpt_to_keep = keep
        self.saved_step, self.leave.save_seconds = self.global_steps, time.time() - began

    def _remove_checkpoint(self, folder: Path):
        def remove(_worker):  # goes by value, as a local function: a node may not have this package
            shutil.rmtree(folder, ignore_errors=True)

        remove(None)
        one_of_each_node = self.actor_rollout_wg.workers[:: self.config.trainer.n_gpus_per_node]
        removals = [worker.__ray_call__.remote(remove) for worker in one_of_each_node]
        with contextlib.suppress(ray.exceptions.RayError):  # dead, or waiting for a rank whose save failed
            ray.get(removals, timeout=REMOVE_SECONDS)


def all_failed(prompts: int, whose: str) -> str:
    """Of a step, or a validation, whose prompts have no response at all."""
    return (
        f"all of the {whose}'s {prompts} prompts failed in the rollout, so there is nothing to go on with; the agent "
        "loop's errors above say why"
    )


def already_finished(trainer, step: int) -> str:
    """Of a run that had done all its steps before, and did none."""
    return (
        f"gpg_verl: nothing was trained: step {step}, from which this run went on, is its last. More steps: raise "
        f"trainer.total_epochs={trainer.total_epochs} and trainer.total_training_steps={trainer.total_training_steps}. "
        "From the beginning: another trainer.default_local_dir, or trainer.resume_mode=disable"
    )
