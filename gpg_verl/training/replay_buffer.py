"""β_th > 0 in a veRL run: its replay buffer samples by `algorithm/refill.py`, its trainer asks for the prompts."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Callable

import torch
import transfer_queue as tq
from verl.trainer.ppo.v1 import replay_buffer
from verl.utils import tensordict_utils as tu
from verl.utils.fs import local_mkdir_safe
from verl.utils.skip import SkipManager

from gpg_verl.algorithm.advantage import group_statistics
from gpg_verl.algorithm.ragged import row_rewards
from gpg_verl.algorithm.refill import GroupStatus, Refill, StepSelection
from gpg_verl.compat.seams import TrainerMixin, seam
from gpg_verl.guards.checkpoints import resumed_folder
from gpg_verl.guards.guarded_run import all_failed
from gpg_verl.guards.rewards import NoReward
from gpg_verl.settings import GPGSettings
from gpg_verl.training.keys import RowKey

logger = logging.getLogger(__name__)

TRAIN = "train"  # veRL's name of the TransferQueue partition


class RefilledSample:
    """Stands in for the `sample` of one of veRL's replay buffers: same arguments, same results, β_th in between.

    Validation goes veRL's way. In the asynchronous modes veRL's own evictions (stale and failed groups) and its `wait`
    strategy stay in force, each evicted group replaced as veRL does.

    Args:
        buffer: veRL's, whose view of TransferQueue, evictions and polls are used.
        refill: the policy.
        stop, hand_back: for a buffer that keeps nothing for the next step (`sync`), else None: ends what the rollout is
            generating; takes the uids whose prompts the next step starts with.
        drop_unscored: rewards that are NaN are left out; otherwise they are an error.
    """

    def __init__(
        self,
        buffer,
        refill: Refill,
        stop: Callable[[], None] | None = None,
        hand_back: Callable[[list[str]], None] | None = None,
        drop_unscored: bool = False,
    ):
        for name, parameters in {
            "_sync_metadata_from_transfer_queue": (),
            "_terminal_eviction_reasons": ("global_steps", "partition_id"),
            "_evict_terminal_groups": ("global_steps", "partition_id", "eviction_reasons"),
            "_clear_groups": ("partition_id", "uids"),
            "_materialize_batch": ("partition_id", "selected_prompt_uids", "partition_snapshot"),
        }.items():
            seam(type(buffer), name, ("self", *parameters))
        if stop is None:
            seam(type(buffer), "_has_enough_samples", ("self", "global_steps", "partition_id", "batch_size"))
        self.accumulate = seam(replay_buffer, "_accumulate_eviction_metrics", ("acc", "new", "stale_count"))
        self.buffer, self.refill, self.drop_unscored = buffer, refill, drop_unscored
        self.stop, self.hand_back = stop, hand_back
        self.verls_sample = buffer.sample

    def __call__(self, global_steps: int, partition_id: str, batch_size: int):
        if partition_id != TRAIN:
            return self.verls_sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)
        assert batch_size == self.refill.batch_size, (batch_size, self.refill.batch_size)
        return self._sample(global_steps)

    @SkipManager.annotate_tq(role="rollout_tq", phase="sample")
    def _sample(self, global_steps: int):
        buffer = self.buffer
        asked, replaced, evictions = 0, 0, {}
        last_debug_time = time.time()
        while True:
            buffer._sync_metadata_from_transfer_queue()
            reasons = buffer._terminal_eviction_reasons(global_steps, TRAIN)
            evicted, stale, _, metrics = buffer._evict_terminal_groups(global_steps, TRAIN, reasons)
            if evicted:
                self.accumulate(evictions, metrics, stale)
                replaced += buffer.refill_fn(len(evicted))
                continue
            self._agree_with_transfer_queue()
            self._judge()
            step = self.refill.select()
            # veRL's `wait` strategy holds sampling back for groups that are about to be too old.
            if step is not None and (self.stop or self.buffer._has_enough_samples(global_steps, TRAIN, 0, set())):
                break
            if step is None and (prompts := self.refill.num_prompts_to_request()):
                asked += buffer.refill_fn(prompts)  # veRL's _add_prompts_to_generate, which calls RefillingStep
                continue
            last_debug_time = buffer._wait_for_next_poll(TRAIN, last_debug_time)

        if not step.selected:
            if self._rows(step.unused):
                raise NoReward(f"no response of the step's {step.judged} prompts has a reward")
            raise RuntimeError(all_failed(step.judged, "step"))
        if step.bound_reached:
            logger.warning(
                "β_th: %d of the step's %d groups are valid after %d prompts, the bound of algorithm.gpg.max_batches; "
                "the step goes on with what there is",
                step.valid, len(step.selected), step.judged,
            )  # fmt: skip
        rows = {key: buffer.partitions[TRAIN][key] for _, key in self._rows(step.selected)}
        batch = buffer._materialize_batch(TRAIN, step.selected, rows)
        buffer._clear_groups(TRAIN, set(step.unused))
        self.refill.close(step)
        if self.stop is not None:
            self._end_rollout(step.rest)
        elif len(step.unused) > asked:
            # What was thrown away is replaced, so that the rollout's head start does not shrink.
            asked += buffer.refill_fn(len(step.unused) - asked)
        return batch, evictions | self._metrics(step, asked + replaced)

    def _agree_with_transfer_queue(self) -> None:
        """TransferQueue decides which groups there are: veRL evicts some elsewhere, and replays recorded ones."""
        there, known = self.buffer.prompt_global_steps[TRAIN], set(self.refill.order)
        if gone := known - there.keys():
            self.refill.remove(gone)
        self.refill.dispatch(uid for uid in there if uid not in known)

    def _judge(self) -> None:
        """Judges the groups that finished since the last look by the estimator's own rule."""
        buffer = self.buffer
        finished = buffer.finished_keys[TRAIN] | buffer.failure_keys[TRAIN]
        new = [uid for uid in finished if not self.refill.is_judged(uid)]
        if not new:
            return
        # Only a session's last output is scored.
        last = {(row.uid, row.session): (row.uid, key) for row, key in self._rows(new)}
        scored = [(uid, key) for uid, key in last.values() if buffer.partitions[TRAIN][key]["response_len"] > 0]
        statuses = dict.fromkeys(new, GroupStatus.EMPTY)
        if scored:
            uids, keys = (list(column) for column in zip(*scored, strict=True))
            data = tq.kv_batch_get(keys=keys, partition_id=TRAIN, select_fields=["rm_scores"])
            scores, magnitudes = row_rewards(data["rm_scores"].values(), data["rm_scores"].offsets())
            counted = ~scores.isnan() if self.drop_unscored else torch.ones(len(keys), dtype=torch.bool)
            valid = group_statistics(scores, uids, counted.long(), magnitudes=magnitudes).valid.tolist()
            for uid, is_counted, is_valid in zip(uids, counted.tolist(), valid, strict=True):
                if is_counted:
                    statuses[uid] = GroupStatus.VALID if is_valid else GroupStatus.ZERO_VARIANCE
        for uid, status in statuses.items():
            self.refill.judge(uid, status)

    def _rows(self, uids: list[str]) -> list[tuple[RowKey, str]]:
        """Their rows, read and as veRL names them, ordered by group as given, session and output."""
        place = {uid: i for i, uid in enumerate(uids)}
        rows = [(row, key) for key in self.buffer.partitions[TRAIN] if (row := RowKey.of(key)).uid in place]
        return sorted(rows, key=lambda of: (place[of[0].uid], of[0].session, of[0].output))

    def _end_rollout(self, rest: list[str]) -> None:
        """Nothing may be in flight when the replicas go to sleep; an aborted group finishes with what it has."""
        buffer, last_debug_time = self.buffer, time.time()
        while buffer.pending_keys[TRAIN] or buffer.running_keys[TRAIN]:
            self.stop()
            last_debug_time = buffer._wait_for_next_poll(TRAIN, last_debug_time)
            buffer._sync_metadata_from_transfer_queue()
        buffer._clear_groups(TRAIN, set(rest))
        self.refill.remove(rest)
        self.hand_back(rest)

    def _metrics(self, step: StepSelection, refilled: int) -> dict[str, float]:
        """Of this step. veRL adds up metrics named `sum` over a step's local updates and averages the others."""
        kept = self.stop is None
        return {
            "gpg/prompts_refilled_sum": refilled,
            "gpg/prompts_judged_sum": step.judged,
            "gpg/prompts_used_sum": len(step.selected),
            "gpg/prompts_handed_back_sum": 0 if kept else len(step.rest),
            "gpg/surplus_valid_groups_sum": 0 if kept else step.surplus_valid,
            "gpg/judged_valid_share": step.valid / step.judged,
            "gpg/refill_bound_reached_sum": int(step.bound_reached),
        }


class RefillingStep(TrainerMixin):
    """The prompts of a trainer step, and β_th; mixed in before one of veRL's trainer classes. Takes `settings` from who
    mixes it in.
    """

    refilled_sample: RefilledSample | None = None

    def _build_replay_buffer(self):
        buffer = super()._build_replay_buffer()
        settings: GPGSettings = self.settings
        if settings.beta_th > 0:
            groups = self.config.data.train_batch_size // self.parameter_sync_step
            refill = Refill(groups, settings.beta_th, settings.max_batches)
            ends = (self._stop_generating, self._hand_back) if self.trainer_mode == "sync" else (None, None)
            buffer.sample = self.refilled_sample = RefilledSample(buffer, refill, *ends, settings.drop_unscored)
        # In `sync`, prompts outlive their requests: those in flight, and those that the next dispatches start with.
        self.prompts_in_flight: dict[str, object] = {}
        self.prompts_handed_back: deque = deque()
        self.prompts_fetched = 0  # from the data set, since the run began
        self.prompts_submitted = 0  # to the rollout, since the last step ended
        return buffer

    def _fetch_one_gen_batch(self):
        """One prompt (β_th sets data.gen_batch_size=1): one handed back, else the data set's next."""
        if self.prompts_handed_back:
            prompt = self.prompts_handed_back.popleft()
            tu.assign_non_tensor_stack(prompt, "uid", [str(uuid.uuid4())])
        else:
            prompt = super()._fetch_one_gen_batch()
            self.prompts_fetched += len(prompt)
        if self.refilled_sample is not None and self.trainer_mode == "sync":
            (uid,) = prompt["uid"]
            self.prompts_in_flight[uid] = prompt.clone(
                recurse=False
            )  # without what veRL adds on the way to the rollout
        return prompt

    def _submit_batch_to_rollout(self, batch):
        self.prompts_submitted += len(batch)
        if self.refilled_sample is not None:
            self.refilled_sample.refill.dispatch(batch["uid"])
        return super()._submit_batch_to_rollout(batch)

    def prompt_metrics(self, groups: int) -> dict[str, float]:
        """Of the step that ends, whose batch had so many groups."""
        metrics = {"gpg/prompts_generated": self.prompts_submitted}
        self.prompts_submitted = 0
        if self.refilled_sample is None:
            metrics |= {"gpg/prompts_used": groups, "gpg/prompts_refilled": 0}
        if self.train_dataset is not None:
            metrics["gpg/data_passes"] = self.prompts_fetched / len(self.train_dataset)
        return metrics

    def _stop_generating(self) -> None:
        # Requests that come after the abort would wait for ever, so generation goes on at once: the next look aborts
        # what a session of several turns, or a session that had not begun, has asked for since.
        self.checkpoint_manager.abort_replicas()
        self.checkpoint_manager.resume_generation_replicas()

    def _hand_back(self, uids: list[str]) -> None:
        """The prompts of these groups come first in the next step, in this order; the others are done with."""
        prompts = [self.prompts_in_flight[uid] for uid in uids if uid in self.prompts_in_flight]
        self.prompts_handed_back.extendleft(reversed(prompts))
        self.prompts_in_flight.clear()

    def _save_checkpoint(self):
        if self.refilled_sample is not None:
            # Before veRL's part, which ends with naming this checkpoint the latest.
            folder = os.path.join(self.config.trainer.default_local_dir, f"global_step_{self.global_steps}")
            local_mkdir_safe(folder)
            state = {"handed_back": list(self.prompts_handed_back), "fetched": self.prompts_fetched}
            state["refill"] = self.refilled_sample.refill.state()
            torch.save(state, os.path.join(folder, "gpg_refill.pt"))
        super()._save_checkpoint()

    def _load_checkpoint(self):
        super()._load_checkpoint()
        self.prompts_fetched = self.global_steps * self.config.data.train_batch_size
        if self.refilled_sample is None or self.global_steps == 0:
            return
        file = resumed_folder(self.config, self.global_steps)[0] / "gpg_refill.pt"
        if file.exists():  # not in a checkpoint of a run without β_th
            state = torch.load(file, weights_only=False)
            self.refilled_sample.refill.restore(state["refill"])
            self.prompts_handed_back = deque(state["handed_back"])
            self.prompts_fetched = state["fetched"]
