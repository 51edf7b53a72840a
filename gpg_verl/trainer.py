"""What GPG changes in a step of veRL's V1 trainer.

`register` makes a GPG version of each of veRL's trainer modes, under a name of its own (`gpg_sync`, ...), by mixing
`GPGStep` into veRL's class. veRL's own modes stay as they are.
"""

from __future__ import annotations

from verl.trainer.ppo.v1 import (
    PPOTrainerColocateAsync,
    PPOTrainerSeparateAsync,
    PPOTrainerSync,
    register_trainer,
)

from gpg_verl import registry
from gpg_verl.config import TRAINER_MODES
from gpg_verl.sampler import Heartbeat, Watch
from gpg_verl.seams import seam
from gpg_verl.workers import check_workers


class GPGStep:
    """The parts of a step that are GPG's; mixed in before one of veRL's trainer classes."""

    def __init__(self, config):
        # veRL looks its modes' settings up by their own names.
        by_name = {ours: theirs for theirs, ours in TRAINER_MODES.items()}
        config.trainer.v1.trainer_mode = by_name[config.trainer.v1.trainer_mode]
        super().__init__(config)

    def on_init_end(self):
        print(check_workers(self.actor_rollout_wg.workers), flush=True)
        super().on_init_end()

    def _build_replay_buffer(self):
        buffer = super()._build_replay_buffer()
        seam(type(buffer), "_wait_for_next_poll", ("self", "partition_id", "last_debug_time"))
        buffer._wait_for_next_poll = Watch(Heartbeat(self._actors_waited_for))
        return buffer

    def _actors_waited_for(self):
        """(name, handle) of every process whose work a step waits for."""
        yield from ((f"actor worker {i}", w) for i, w in enumerate(self.actor_rollout_wg.workers))
        yield from ((f"agent-loop worker {i}", w) for i, w in enumerate(self.agent_loop_manager.agent_loop_workers))
        yield from ((f"reward worker {i}", w) for i, w in enumerate(self.get_reward_handles() or []))
        for manager in self._rollout_server_managers():
            for replica in manager.get_replicas():
                yield from ((f"rollout server {i}", s) for i, s in enumerate(replica.servers))

    def _compute_advantage(self, batch, metrics):
        batch = super()._compute_advantage(batch, metrics)
        metrics.update(statistics_metrics(registry.last_statistics))
        return batch

    def _update_actor(self, batch, metrics):
        batch = super()._update_actor(batch, metrics)
        # Written by the policy loss over the rows that the actor saw. In bypass mode the old log-probs are the
        # rollout's, so it is veRL's own measure of how well trainer and rollout agree; else veRL has logged that.
        probs_diff = metrics.pop("actor/old_probs_diff_mean", None)
        if probs_diff is not None and self.config.algorithm.rollout_correction.bypass_mode:
            metrics["training/rollout_probs_diff_mean"] = probs_diff
        return batch


def statistics_metrics(statistics) -> dict[str, float]:
    """A step's group statistics under `gpg/` (design invariant 5)."""
    return {
        "gpg/alpha": statistics.alpha,
        "gpg/B": statistics.B,
        "gpg/M": statistics.M,
        "gpg/valid_share": statistics.valid_share,
        "gpg/groups": statistics.groups,
        "gpg/all_right_groups": statistics.all_right,
        "gpg/all_wrong_groups": statistics.all_wrong,
        "gpg/groups_of_one": statistics.singletons,
    }


def register() -> None:
    """Registers GPG's version of each trainer mode with veRL."""
    bases = {
        "sync": PPOTrainerSync,
        "colocate_async": PPOTrainerColocateAsync,
        "separate_async": PPOTrainerSeparateAsync,
    }
    for mode, base in bases.items():
        register_trainer(TRAINER_MODES[mode])(type(f"GPG{base.__name__}", (GPGStep, base), {"__module__": __name__}))
