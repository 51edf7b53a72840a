"""What GPG changes in a step of veRL's V1 trainer: `GPGStep`, mixed into the class of each of veRL's trainer modes
under names of their own (`gpg_sync`, ...), with the guards of any run (guards/guarded_run.py) around both.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from itertools import compress

import numpy as np
import ray
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.trainer.ppo import core_algos, v1
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import trainer_separate_async
from verl.utils.metric import reduce_metrics
from verl.utils.seqlen_balancing import calculate_workload, log_seqlen_unbalance

from gpg_verl.algorithm.advantage import GroupStatistics, session_statistics
from gpg_verl.algorithm.ragged import repeat, rewards_to_go, row_lengths, row_rewards
from gpg_verl.algorithm.updates import assign, balance_rows, interleave_by_length, plan_updates
from gpg_verl.compat.verl_fixes import log_that_takes_flush
from gpg_verl.guards.guarded_run import GuardedRun
from gpg_verl.guards.rewards import NoReward
from gpg_verl.settings import TRAINER_MODES, GPGSettings, verls_mode
from gpg_verl.training import registry, shortcuts
from gpg_verl.training.actor import PASSES, PLAN, GPGActor, GPGDetachedActor, Plan, check_versions
from gpg_verl.training.keys import RowKey, in_dispatch_order, sessions_of
from gpg_verl.training.metrics import TOKENS, StepMetrics, keep_metrics
from gpg_verl.training.replay_buffer import RefillingStep
from gpg_verl.training.rollout_check import RolloutCheck
from gpg_verl.training.sessions import WatchedSessions

# Of veRL's rollout correction, the settings that the update's own log-probs are weighed and rejected by.
CORRECTION = ("rollout_is", "rollout_is_threshold", "rollout_is_batch_normalize", "rollout_rs", "rollout_rs_threshold")


@dataclass(frozen=True)
class StepBatch:
    """The rows of a step's batch, in their order.

    uids: (rows,) of the prompt: one group each.
    lengths: (rows,) response tokens that the policy wrote.
    statistics: Â, α, B and M of the batch.
    """

    uids: list[str]
    lengths: torch.Tensor
    statistics: GroupStatistics


class GPGStep(WatchedSessions, RefillingStep):
    """The parts of a step that are GPG's; mixed in before one of veRL's trainer classes. It changes

    - `_compute_advantage`: group statistics from one reward and one length a row, α, Â,
    - `_update_actor`: the planned updates, on the rows that have a gradient; none where no group is valid,
    - the passes before them: no old log-probs, and no padding to whole mini-batches, where nothing needs either.
    """

    actor_cls = GPGActor
    several_sources = False

    def __init__(self, config):
        config.trainer.v1.trainer_mode = verls_mode(config.trainer.v1.trainer_mode)
        self.settings = GPGSettings.from_node(config.algorithm.get("gpg"))
        self.max_dropped_share, self.drop_unscored = self.settings.max_dropped_share, self.settings.drop_unscored
        self.max_dropped_share_key = "algorithm.gpg.max_dropped_share"
        self.drop_unscored_key = "algorithm.gpg.drop_unscored"
        self.other_loss_term = shortcuts.other_loss_term(config)
        reasons = shortcuts.unsupported(config, model=shortcuts.model_config(config))
        self.planned = reasons["updates"] is None
        self.updates = shortcuts.updates_per_batch(config)
        self.passes_in_groups = shortcuts.passes_in_groups(config)
        self.unsupported = {kind: reasons[kind] for kind in PASSES}
        self.passes_checked = False  # with the engine itself, at the first update
        correction = config.algorithm.rollout_correction
        self.old_log_prob_pass = not correction.bypass_mode
        # Rollout correction in a pass of its own, and KL in the reward, work on padded token tensors in the driver.
        self.token_tensors = self.old_log_prob_pass or config.algorithm.use_kl_in_reward
        corrected = correction.rollout_is is not None or correction.rollout_rs is not None
        self.correction = {key: correction[key] for key in CORRECTION} if corrected else None
        self.step_metrics = StepMetrics()
        self.steps_skipped = 0  # in a row, up to now
        self.rollout_check = RolloutCheck(config, self.settings.max_rollout_gap, corrected, reasons["updates"])
        self.deterministic = bool(config.actor_rollout_ref.rollout.full_determinism)
        self.dispatched: dict[str, int] = {}  # with full determinism: each group's place in the order of dispatch
        super().__init__(config)

    def _init_resource_pool_mgr(self):
        super()._init_resource_pool_mgr()
        for role in (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef):
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(self.actor_cls)

    def _init_dataloader(self):
        super()._init_dataloader()
        rows = getattr(self.train_dataset, "dataframe", None)  # a data set class of the user's may have none
        columns = getattr(rows, "column_names", getattr(rows, "columns", None))  # datasets; pandas, polars
        if columns is None:
            return
        if "data_source" in columns:
            sources = rows.unique("data_source") if hasattr(rows, "column_names") else set(rows["data_source"])
            self.several_sources = len(sources) > 1
        keys = {self.config.data.get("image_key", "images"), self.config.data.get("video_key", "videos")}
        if not keys & set(columns):
            self.rollout_check.kinds.discard("images")

    def on_init_end(self):
        print(check_versions(self.actor_rollout_wg.versions()), flush=True)
        print(sharing_status(self.unsupported, checked=False), flush=True)
        super().on_init_end()

    def _val_metrics_update(self, data_sources, sample_uids, reward_extra_infos_dict, *args, **kwargs):
        """A response without a reward is to veRL's validation as one that failed in the rollout."""
        scored = ~np.isnan(np.asarray(reward_extra_infos_dict["reward"], dtype=float))
        if not (scored.all() or self.drop_unscored):
            raise NoReward(f"{(~scored).sum()} of {len(scored)} responses of the validation have no reward")
        data_sources, sample_uids = (list(compress(values, scored)) for values in (data_sources, sample_uids))
        infos = {key: list(compress(values, scored)) for key, values in reward_extra_infos_dict.items()}
        return super()._val_metrics_update(data_sources, sample_uids, infos, *args, **kwargs)

    def fit(self, agent_loop_manager):
        keep_metrics(self.config)
        super().fit(agent_loop_manager)

    # ---- one step

    def step(self, metrics, timing_raw):
        self.step_metrics = StepMetrics()
        if self.trainer_mode == "sync":
            self.dispatched.clear()
        batch = super().step(metrics, timing_raw)
        for key in [key for key in metrics if key.startswith("gpg/") and key.endswith("_sum")]:
            metrics[key.removesuffix("_sum")] = metrics.pop(key)  # so called for veRL to add up over local updates
        metrics.update(self.step_metrics.end())
        self._end_if_nothing_is_learned(metrics)
        metrics.update(self.prompt_metrics(metrics["gpg/groups"]))
        return batch

    def _end_if_nothing_is_learned(self, metrics):
        """Raises RuntimeError after more than `max_skipped_steps` steps in a row in which no group was valid."""
        # A step without updates of either kind, as in veRL's critic warm-up, does not lack a mixed group.
        skipped = metrics["gpg/update_skipped"] and not metrics["gpg/updates"]
        self.steps_skipped = self.steps_skipped + 1 if skipped else 0
        if self.steps_skipped > self.settings.max_skipped_steps:
            raise RuntimeError(
                f"no group of the last {self.steps_skipped} steps had two different rewards: nothing was trained. Of "
                f"the last step's {metrics['gpg/groups']} groups, {metrics['gpg/all_wrong_groups']} were all wrong and "
                f"{metrics['gpg/all_right_groups']} all right. All wrong: check that the reward function finds the "
                "answers (look at the rollouts with trainer.rollout_data_dir=DIR), or take easier questions; all "
                "right: take harder ones. More responses per prompt (actor_rollout_ref.rollout.n) also give more mixed "
                "groups. +algorithm.gpg.max_skipped_steps=N waits longer."
            )

    def _submit_batch_to_rollout(self, batch):
        if self.deterministic:
            self.dispatched.update({uid: len(self.dispatched) + i for i, uid in enumerate(batch["uid"])})
        return super()._submit_batch_to_rollout(batch)

    def _get_required_batch_multiple(self, dp_size):
        # Planned updates take any number of rows; veRL's take whole mini-batches, its forward passes micro-batches.
        if self.planned and not self.old_log_prob_pass and not self.use_reference_policy:
            return dp_size
        return super()._get_required_batch_multiple(dp_size)

    def _balance_batch(self, batch, metrics, **kwargs):
        if self.drop_unscored:
            batch = self._scored(batch, metrics)
        if self.deterministic:
            batch.reorder(in_dispatch_order([RowKey.of(key) for key in batch.keys], self.dispatched))
        if self.planned:
            return self._balance_rows(batch, metrics)
        return super()._balance_batch(batch, metrics, **kwargs)

    def _scored(self, batch, metrics):
        """The batch without the rows whose reward is NaN, as if the rollout had not made them."""
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["rm_scores"])
        scores, _ = row_rewards(data["rm_scores"].values(), data["rm_scores"].offsets())
        unscored = [key for key, score in zip(batch.keys, scores.tolist(), strict=True) if math.isnan(score)]
        metrics["gpg/rows_unscored_sum"] = len(unscored)
        if len(unscored) == len(batch):
            raise NoReward(f"none of the step's {len(batch)} responses has a reward")
        if not unscored:
            return batch
        tq.kv_clear(keys=unscored, partition_id=batch.partition_id)
        gone = set(unscored)
        return batch.select_keys([key for key in batch.keys if key not in gone])

    def _balance_rows(self, batch, metrics):
        """veRL's balancing, by `balance_rows`: its Karmarkar-Karp takes 5 to 8 s for 65,536 rows (0.9.1)."""
        ranks = self._data_parallel_size()
        multiple = self._get_required_batch_multiple(ranks)
        batch = upsample_batch_to_divisible_size(batch, multiple, self.tokenizer.eos_token_id)
        lengths = [tag["seq_len"] for tag in batch.tags]
        parts = balance_rows(range(len(batch)), work(lengths), ranks)
        model, rollout = self.config.actor_rollout_ref.model, self.config.actor_rollout_ref.rollout
        size = None if rollout.log_prob_use_dynamic_bsz else rollout.log_prob_micro_batch_size_per_gpu
        if self.old_log_prob_pass and size and model.get("use_remove_padding"):
            # Of packed rows, the longest together would be a micro-batch larger than any of veRL's.
            parts = [interleave_by_length(part, size) for part in parts]
        batch.reorder([row for part in parts for row in part])
        metrics.update(log_seqlen_unbalance(lengths, parts, "global_seqlen"))
        return batch

    def _compute_old_log_prob(self, batch, metrics):
        # In bypass mode veRL copies the rollout's log-probs under another name, by way of the driver; GPG's actor takes
        # them where they are, and only a KL in the reward reads them before.
        if self.planned and not self.token_tensors:
            return batch
        return super()._compute_old_log_prob(batch, metrics)

    def _compute_advantage(self, batch, metrics):
        fields = ["response_mask"] if self.token_tensors else ["response_mask", "rm_scores"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        started = time.perf_counter()
        keys = [RowKey.of(key) for key in batch.keys]
        uids = [key.uid for key in keys]
        offsets = data["response_mask"].offsets()
        lengths = row_lengths(data["response_mask"].values(), offsets)
        known = {"sessions": sessions_of(keys), "left_out": None}
        if self.settings.drop_truncated:
            longest = self.config.actor_rollout_ref.rollout.response_length
            known["left_out"] = torch.tensor([tag["response_len"] >= longest for tag in batch.tags])
        if self.token_tensors:
            self.step_metrics.counts["driver_seconds"] += time.perf_counter() - started
            reported: list[GroupStatistics] = []
            known["lengths"] = lengths
            estimator = functools.partial(registry.gpg_advantage_estimator, known=known, report=reported.append)
            with registry.registered(core_algos.ADV_ESTIMATOR_REGISTRY, estimator):
                batch = super()._compute_advantage(batch, metrics)
            (statistics,) = reported
        else:
            scores, magnitudes = row_rewards(data["rm_scores"].values(), offsets)
            settings = {"f_norm": self.settings.f_norm, "alpha": self.settings.alpha}
            statistics = session_statistics(scores, uids, lengths, magnitudes=magnitudes, **settings, **known)
            to_go = rewards_to_go(data["rm_scores"].values(), offsets)
            advantages = repeat(statistics.advantages, offsets.diff())
            if int(lengths.sum()) != len(advantages):  # tokens that the policy did not write
                advantages, to_go = (x * data["response_mask"].values() for x in (advantages, to_go))
            nested = {
                name: torch.nested.nested_tensor_from_jagged(values, offsets)
                for name, values in (("advantages", advantages), ("returns", to_go))
            }
            self.step_metrics.counts["driver_seconds"] += time.perf_counter() - started
            fields = TensorDict(nested, batch_size=len(batch))
            batch = tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
        self.step_batch = StepBatch(uids, lengths, statistics)
        sources = None
        if self.several_sources:
            data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["data_source"])
            sources = list(data["data_source"])
        self.step_metrics.sampled(statistics, sources)
        return batch

    def _update_actor(self, batch, metrics):
        if not self.step_batch.statistics.valid.any() and self.other_loss_term is None:
            # No gradient anywhere: an optimizer step would only decay the weights and advance the schedule.
            self.step_metrics.counts["update_skipped"] += 1
            return batch
        if self.planned:
            return self._planned_update(batch, metrics)
        self.step_metrics.counts["updates"] += 1
        return super()._update_actor(batch, metrics)

    def _planned_update(self, batch, metrics):
        """The updates of the whole batch, on the rows that have a gradient."""
        passes, actor, started = self._pass_kind(), self.config.actor_rollout_ref.actor, time.perf_counter()
        real = [i for i, tag in enumerate(batch.tags) if not tag.get("is_padding")]
        batch, updates = self._plan(batch, real, passes)
        ranks = range(len(updates[0].rows))
        part = batch.select_keys([batch.keys[i] for rank in ranks for u in updates for i in u.rows[rank]])
        observe = self.config.actor_rollout_ref.rollout.calculate_log_probs and not self.old_log_prob_pass
        part.extra_info.update(
            {
                PLAN: Plan(
                    updates,
                    epochs=actor.ppo_epochs,
                    observe=observe and self.local_trigger_step == 0,
                    compared=self._compared(batch, updates[0]),
                    correction=self.correction if observe else None,
                    passes=passes,
                ),
                "calculate_entropy": actor.calculate_entropy or actor.entropy_coeff != 0,
                "distillation_use_topk": False,
                "distillation_only": False,
                "temperature": self.config.actor_rollout_ref.rollout.temperature,
            }
        )
        self.step_metrics.counts["driver_seconds"] += time.perf_counter() - started

        output = self.actor_rollout_wg.update_actor(part)["metrics"]
        self.rollout_check(output.pop("gpg/gaps", [{}])[0])
        if "gpg/check_seconds" in output:
            self.step_metrics.counts["check_seconds"] += output.pop("gpg/check_seconds")[0]
            self._check_passes()
        counted = f"gpg/{TOKENS[0]}" in output
        self.step_metrics.updated(
            updates,
            actor.ppo_epochs,
            response_tokens=self.step_batch.lengths.tolist(),
            sequence_tokens=[tag["seq_len"] for tag in batch.tags],
            real=real,
            observed=output.pop("gpg/rows_observed", [None])[0],
            tokens={name: output.pop(f"gpg/{name}")[0] for name in TOKENS} if counted else None,
        )
        metrics.update(actor_metrics(output, updates, actor))
        return batch

    def _compared(self, batch, update) -> list[list[bool]] | None:
        """Of each rank, which rows of the update were sampled with the trainer's weights: at the first local update the
        rollout's newest are those of the step before. None where nothing is to be compared.
        """
        if not self.rollout_check.kinds or self.local_trigger_step != 0:
            return None
        version = self.global_steps - 1
        fresh = [tag["min_global_steps"] == tag["max_global_steps"] == version for tag in batch.tags]
        return [[fresh[i] for i in rows] for rows in update.rows] if any(fresh) else None

    def _pass_kind(self) -> str | None:
        """The kind of forward passes: the first that is exact with the engine, as each rank found out before the first
        update; None for veRL's own.
        """
        if not self.passes_checked and None in self.unsupported.values():
            self._check_passes()
        self.passes_checked = True
        return next((kind for kind, reason in self.unsupported.items() if reason is None), None)

    def _check_passes(self):
        """Asks the workers what they know of their passes; a line for the log where that is new."""
        before = dict(self.unsupported)
        for answer in self.actor_rollout_wg.check_passes():
            self.unsupported = {kind: reason or answer[kind] for kind, reason in self.unsupported.items()}
        if self.passes_checked or self.unsupported != before:
            print(sharing_status(self.unsupported, checked=True), flush=True)

    def _plan(self, batch, real, passes):
        """The batch, with padding added where its rows do not fill the grid, and its updates. `real`: its rows but
        padding; `passes`: as from `_pass_kind`.
        """
        actor = self.config.actor_rollout_ref.actor
        groups = [self.step_batch.uids[i] for i in real]
        if self.deterministic:  # uids are new in each run
            groups = [f"{self.dispatched.get(uid, 0):012}{uid}" for uid in groups]
        mini_batches = [[real[j] for j in rows] for rows in assign(groups, self.updates)]
        has_gradient = self.step_batch.statistics.valid.tolist()
        if self.other_loss_term is not None:
            has_gradient = [not tag.get("is_padding") for tag in batch.tags]
        seq_tokens, prompt_tokens = ([tag[name] for tag in batch.tags] for name in ("seq_len", "prompt_len"))
        tokens, trees = self.step_batch.lengths.tolist(), passes == "trees"
        updates = plan_updates(
            mini_batches,
            [i for i, tag in enumerate(batch.tags) if tag.get("is_padding")],
            has_gradient,
            tokens,
            ranks=self._data_parallel_size(),
            micro_batch_size=None if trees or actor.use_dynamic_bsz else actor.ppo_micro_batch_size_per_gpu,
            loss_agg_mode=actor.loss_agg_mode,
            work=work(seq_tokens, None if passes is None else tokens),
            passes_in_groups=self.passes_in_groups,
            packed=bool(self.config.actor_rollout_ref.model.get("use_remove_padding")),
            prompts=list(zip(self.step_batch.uids, work(prompt_tokens), strict=True)) if trees else None,
        )
        size, needed = len(batch), 1 + max(i for update in updates for rows in update.rows for i in rows)
        if needed > size:
            batch = upsample_batch_to_divisible_size(batch, needed, self.tokenizer.eos_token_id)
            self._write_zeros(batch.select_keys(batch.keys[size:]))
        return batch, updates

    def _write_zeros(self, padding):
        """veRL pads a batch before anything is computed on it, with copies of its first row: what was computed on that
        row since has its length.
        """
        weighted = self.old_log_prob_pass and self.correction and self.correction["rollout_is"]
        fields = [
            *("advantages", "returns"),
            *(["old_log_probs"] if self.token_tensors else []),
            *(["rollout_is_weights"] if weighted else []),
            *(["ref_log_prob"] if self.use_reference_policy else []),
        ]
        data = tq.kv_batch_get(keys=padding.keys, partition_id=padding.partition_id, select_fields=["rm_scores"])
        zeros = TensorDict(dict.fromkeys(fields, data["rm_scores"]), batch_size=len(padding))
        tq.kv_batch_put(keys=padding.keys, partition_id=padding.partition_id, fields=zeros)

    def _data_parallel_size(self) -> int:
        workers = self.actor_rollout_wg
        if "actor" not in workers._dispatch_info:
            workers._dispatch_info["actor"] = workers._query_dispatch_info("actor")
        return max(workers._dispatch_info["actor"]) + 1


def sharing_status(unsupported: dict[str, str | None], checked: bool) -> str:
    """A line for the log: whether prefixes are shared, and if not why."""
    trees, rows = unsupported["trees"], unsupported["rows"]
    if trees is None:
        line = "gpg_verl: prefix sharing is on, and the vocabulary is computed where a token is scored"
        return line if checked else f"{line}, if the first update finds it exact"
    return f"gpg_verl: prefix sharing is off: {trees}" + (f"; the vocabulary for every token: {rows}" if rows else "")


# What scoring a token costs in the measure of veRL, which is that of a layer of a 7B (a token 24,576, a pair 1): half
# its vocabulary of 152,064, over its 28 layers.
SCORING = 152_064 / 2 / 28


def work(tokens: list[int], scored: list[int] | None = None) -> list[float]:
    """What rows of so many tokens cost, by veRL's measure: layers by tokens, attention by pairs. With `scored`, of how
    many each, the vocabulary for those.
    """
    layers = calculate_workload(torch.tensor(tokens))
    return layers.tolist() if scored is None else (layers + SCORING * torch.tensor(scored)).tolist()


def actor_metrics(output: dict, updates, actor) -> dict[str, float]:
    """The actor's metrics under veRL's names, from one list of values each, an item for each update."""
    output = {
        key if key.startswith(("training/", "rollout_corr/")) else f"actor/{key.removeprefix('actor/')}": value
        for key, value in output.items()
    }
    output["perf/mfu/actor"] = output.pop("actor/mfu")
    if "actor/entropy_loss" in output:
        # The entropy of the rows computed: veRL's sequence means divide by the sequences of the full mini-batch.
        shares = [1.0] * len(updates)
        if actor.loss_agg_mode.startswith("seq-mean"):
            shares = [len(u.computed()) / u.sequences for u in updates]
        entropies = zip(output["actor/entropy_loss"], shares * actor.ppo_epochs, strict=True)
        output["actor/entropy"] = [entropy / share for entropy, share in entropies]
    return reduce_metrics(output)


@v1.register_trainer(TRAINER_MODES["sync"])
class GPGTrainerSync(GuardedRun, GPGStep, v1.PPOTrainerSync):
    pass


@v1.register_trainer(TRAINER_MODES["colocate_async"])
class GPGTrainerColocateAsync(GuardedRun, GPGStep, v1.PPOTrainerColocateAsync):
    pass


@v1.register_trainer(TRAINER_MODES["separate_async"])
class GPGTrainerSeparateAsync(GuardedRun, GPGStep, v1.PPOTrainerSeparateAsync):
    actor_cls = GPGDetachedActor

    def _setup(self):
        with log_that_takes_flush(trainer_separate_async):
            super()._setup()
