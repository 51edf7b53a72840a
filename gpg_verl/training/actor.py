"""GPG's actor worker: veRL's, and the updates of a batch as the trainer planned them.

veRL's actor cuts a batch into mini-batches of one size. With the rows of zero-variance groups gone, mini-batches differ
in size, and their denominators are those of the rows that they had; `train_mini_batch` is told both.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import verl
from tensordict import TensorDict
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.single_controller.base.decorator import Dispatch, register
from verl.trainer.ppo import core_algos
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.utils.py_functional import append_to_dict
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

import gpg_verl
from gpg_verl.algorithm.updates import Update
from gpg_verl.compat.seams import ActorMixin, replaced, seam
from gpg_verl.compat.verl_fixes import attention_without_cudnn
from gpg_verl.training import registry
from gpg_verl.training.agreement import COMPARED, Agreement
from gpg_verl.training.attention import NotExact
from gpg_verl.training.images import shown_by, unmatched_row, unsupported_inputs
from gpg_verl.training.metrics import TOKENS
from gpg_verl.training.passes import Passes
from gpg_verl.training.self_check import SelfCheck, longest_groups
from gpg_verl.training.shortcuts import unsupported_model

PLAN = "gpg_plan"

# Passes over prefix trees, and over rows with the vocabulary only where a token is scored.
PASSES = ("trees", "rows")


@dataclass(frozen=True)
class Plan:
    """The updates of a batch: the trainer sends it along with each rank's rows, which come in the order of the updates.

    epochs: how often the whole is gone through.
    observe: whether to measure how trainer and rollout agree.
    compared: of each rank, which rows of the first update were sampled with the weights that the trainer has now: their
        log-probs are compared with the rollout's. None: of no row.
    correction: arguments of veRL's rollout correction, whose weights come from the update's own log-probs; None where
        the batch brings them.
    passes: of `PASSES`; None for veRL's own.
    """

    updates: list[Update]
    epochs: int
    observe: bool
    compared: list[list[bool]] | None
    correction: dict[str, Any] | None
    passes: str | None


class GPGTrainingWorker(TrainingWorker):
    passes: Passes | None = None
    unsupported: str | None = None  # why rows of some batch were not computed as trees; the first reason

    def __init__(self, config):
        attention_without_cudnn(torch.backends.cuda)  # before anything is computed, by whatever attention
        super().__init__(config)

    def check_passes(self) -> dict[str, str | None]:
        """Of each kind of passes, why it is not exact with this engine and model, as far as is known: asked on all
        ranks before a plan asks for them, and after a batch whose rows were checked.
        """
        if type(self.engine) is not FSDPEngineWithLMHead:
            return dict.fromkeys(PASSES, f"{type(self.engine).__name__} is not an engine that it is known for")
        if self.passes is None:
            coefficient = self.loss_fn.keywords["config"].entropy_coeff  # type: ignore[attr-defined]
            self.passes = Passes(self.engine, entropy_has_gradient=bool(coefficient))
            self.self_check = SelfCheck(self.passes)
            if (reason := unsupported_model(self.passes.model.config)) is not None:
                self.self_check.refused["trees"] = reason
        return {kind: self.self_check.refused.get(kind) for kind in PASSES}

    def infer_batch(self, data):
        return super().infer_batch(positions_by_token(data))

    def train_mini_batch(self, data):
        """All updates of a batch in one call: `data` has this rank's rows and the `Plan`; without one it is veRL's."""
        data = positions_by_token(data)
        plan: Plan | None = tu.pop(data, PLAN, default=None)
        if plan is None:
            return super().train_mini_batch(data)
        if "old_log_probs" not in data:
            # veRL's loss asks for them whatever it is. The rollout's tell how well the two agree.
            data["old_log_probs"] = data["rollout_log_probs" if "rollout_log_probs" in data else "advantages"]

        metrics: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()
        agreement = Agreement() if plan.observe or plan.compared else None
        count = len(plan.updates) * plan.epochs
        with self.engine.train_mode(disable_auto_offload=tu.pop(data, "disable_auto_offload", default=False)):
            kind = self._kind_of_passes(plan.passes, data, metrics)
            for step in range(count):
                started = time.perf_counter()
                try:
                    output = self._update(data, plan, step, kind, agreement)
                except NotExact as error:  # on all ranks, before the optimizer's step
                    self.self_check.refused["trees"] = str(error)
                    self.passes.counts.clear()
                    metrics["gpg/check_seconds"] = [time.perf_counter() - started]
                    kind, agreement = None, Agreement() if agreement is not None and step == 0 else agreement
                    output = self._update(data, plan, step, kind, agreement)
                if output is not None:
                    append_to_dict(metrics, tu.get(output, "metrics"))
        if agreement is not None:
            seen = self._of_all_ranks(agreement)
            agreement = Agreement([x for part in seen for x in part.log_probs], [x for part in seen for x in part.rows])
            if plan.observe:
                measured = agreement.metrics(plan.correction, get_device_name())
                measured["gpg/rows_observed"] = len(agreement.rows)
                metrics.update({key: [value] for key, value in measured.items()})
            metrics["gpg/gaps"] = [agreement.gaps()]
        if kind is not None:
            metrics.update({f"gpg/{name}": [self.counts[name]] for name in TOKENS})
        if not self.engine.is_mp_src_rank_with_outputs():
            return None
        return tu.get_tensordict(tensor_dict={}, non_tensor_dict={"metrics": metrics}).cpu()

    def _update(self, data, plan: Plan, step: int, kind: str | None, agreement: Agreement | None):
        # Only before the first update are the weights those that sampled the batch.
        loss_fn = self.loss_fn
        if agreement is not None and step == 0:
            loss_fn = agreement.observe(loss_fn)
        last = step == len(plan.updates) * plan.epochs - 1
        schedule = contextlib.nullcontext() if last else _schedule_held(self.engine)
        passes = contextlib.nullcontext() if kind is None else self.passes.during_update(kind == "trees")
        part = self._rows_of(data, plan, step % len(plan.updates), kind == "trees")
        policy_loss = functools.partial(registry.gpg_policy_loss, correction=plan.correction)
        loss = registry.registered(core_algos.POLICY_LOSS_REGISTRY, policy_loss)
        with schedule, passes, loss, replaced(self, "loss_fn", loss_fn):
            return super().train_mini_batch(part)

    def _postprocess_output(self, output, **others):
        if self.passes is not None and self.passes.active:
            counts = sum(self._of_all_ranks(self.passes.counts), Counter())
            self.passes.counts = Counter()
            self.counts.update(counts)
            others["global_token_num"] = equivalent_lengths(counts)
        return super()._postprocess_output(output, **others)

    def _kind_of_passes(self, kind: str | None, data, metrics) -> str | None:
        """The kind of passes for these rows: the planned one where it is exact for them, as the rows show it where they
        are beyond what was checked (`SelfCheck`). All ranks look together, and find the same.

        Raises ValueError: a row's images are not for as many tokens as it has of them; has its prompt.
        """
        config, images = self.model_config.hf_config, [bool(row) for row in shown_by(data)]
        unmatched = unmatched_row(data, config, getattr(self.model_config, "tokenizer", None))
        own = (int(data["input_ids"].offsets().diff().max()), any(images), unmatched, unsupported_inputs(data, config))
        lengths, shown, unmatched, unsupported = zip(*self._of_all_ranks(own), strict=True)
        longest, with_images = max(lengths), any(shown)
        if with_images and any(unmatched):
            raise ValueError(
                f"a row beside rows with images has {next(filter(None, unmatched))}. No update is made of this batch: "
                "take the prompt out of the data, or what in its text stands for an image"
            )
        if kind == "trees" and any(unsupported):
            kind, reason = "rows", next(filter(None, unsupported))
            if not self.unsupported and self.engine.get_data_parallel_rank() == 0:
                print(f"gpg_verl: prefix sharing is off where {reason}", flush=True)
            self.unsupported = reason
        if kind is None:
            return None
        if self.self_check.due(kind, longest, with_images):
            started = time.perf_counter()
            self.self_check(kind, self._rows_to_check(data, images), longest, with_images)
            metrics["gpg/check_seconds"] = [time.perf_counter() - started]
        return kind if kind not in self.self_check.refused else None

    def _rows_to_check(self, data, images):
        """`longest_groups` of this rank as a batch to train on; some rows twice so that each rank has as many."""
        rows = longest_groups(data, images)
        count = max(self._of_all_ranks(len(rows)))
        part = tu.index_select_tensor_dict(data, [rows[i % len(rows)] for i in range(count)])
        part["number"] = torch.arange(count)
        engine = self.engine_config
        tu.assign_non_tensor(
            part,
            calculate_entropy=False,
            use_remove_padding=self.model_config.get("use_remove_padding", False),
            use_fused_kernels=False,
            use_dynamic_bsz=engine.use_dynamic_bsz,
            max_token_len_per_gpu=engine.max_token_len_per_gpu,
        )
        if not engine.use_dynamic_bsz:
            tu.assign_non_tensor(part, micro_batch_size_per_gpu=_divisor(count, engine.micro_batch_size_per_gpu))
        return part

    def _rows_of(self, data, plan: Plan, number: int, trees: bool):
        """This rank's rows of one update, with what veRL's `train_mini_batch` is to divide by."""
        update, rank = plan.updates[number], self.engine.get_data_parallel_rank()
        start, count = sum(len(before.rows[rank]) for before in plan.updates[:number]), len(update.rows[rank])
        part = tu.index_select_tensor_dict(data, list(range(start, start + count)))
        part["advantages"] = part["advantages"] * update.factor
        if number == 0 and plan.compared:
            part[COMPARED] = torch.tensor(plan.compared[rank])
        if update.filling[rank]:
            mask_out_rows(part, update.filling[rank])
        micro = update.micro_batch_size
        if plan.passes == "trees" and not trees and not self.engine_config.use_dynamic_bsz:
            # Planned for trees, of any number of rows; veRL cuts rows into micro-batches of one size.
            micro = _divisor(count, self.engine_config.micro_batch_size_per_gpu)
        tu.assign_non_tensor(
            part,
            mini_batch_size=count * self.engine.get_data_parallel_size(),
            global_batch_size=update.sequences,
            disable_auto_offload=True,
            **({} if micro is None else {"micro_batch_size_per_gpu": micro}),
        )
        return part

    def _of_all_ranks(self, own) -> list:
        parts = [own] * self.engine.get_data_parallel_size()
        if len(parts) > 1:
            torch.distributed.all_gather_object(parts, own, group=self.engine.get_data_parallel_group())
        return parts


def _divisor(count: int, most: int) -> int:
    """The largest divisor of `count` that is at most `most`."""
    return max(size for size in range(1, most + 1) if count % size == 0)


def equivalent_lengths(counts: Counter[str]) -> list[float]:
    """Lengths of rows with as many tokens, and as many pairs of a query and a key that it sees, as were computed: what
    veRL's `perf/mfu/actor` is made from.
    """
    tokens = counts["tokens_computed"]
    rows = max(1, round(tokens * tokens / max(1, 2 * counts["attended_pairs"])))
    return [tokens / rows] * rows


def mask_out_rows(part: TensorDict, count: int) -> None:
    """Takes the last `count` rows out of the loss and of what is counted."""
    for name in ("response_mask", "loss_mask", "advantages"):
        values, offsets = part[name].values().clone(), part[name].offsets()
        values[offsets[-1 - count] :] = 0
        part[name] = torch.nested.nested_tensor_from_jagged(values, offsets)


def positions_by_token(data: TensorDict) -> TensorDict:
    """The rows, with position ids that are ragged along the tokens.

    A vision-language model has several numbers a token, (4, tokens) a row. TransferQueue packs rows along the axis in
    which they differ. Rows of one length differ in none; then it takes the first axis where veRL expects the last, and
    fails (`maybe_fix_3d_position_ids`, veRL 0.9.1). One row is always such a batch.
    """
    positions = data.get("position_ids", None)
    if positions is None or positions.dim() != 3 or not positions.is_nested:
        return data
    values, tokens = positions.values(), data["input_ids"].offsets()
    if torch.equal(positions.offsets(), tokens) and values.shape[-1] == tokens[-1]:
        tu.maybe_fix_3d_position_ids(data)
    else:
        data["position_ids"] = tu.nested_tensor_from_tensor_list(list(values.view(len(data), -1, values.shape[-1])))
    return data


def _schedule_held(engine) -> contextlib.AbstractContextManager:
    """veRL advances the learning-rate schedule once a call; a batch of several updates counts as one (veRL 0.9.1)."""
    seam(type(engine), "lr_scheduler_step", ("self",))
    return replaced(engine, "lr_scheduler_step", lambda: None)


class CheckPassesMixin(ActorMixin):
    """What the trainer asks of its actor workers beside veRL's questions."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[attr-defined]
    def versions(self) -> dict[str, str]:
        """What this worker would train with: versions, the module of the loss `gpg`, and the host that has them."""
        loss = core_algos.POLICY_LOSS_REGISTRY["gpg"]
        return {
            "host": socket.gethostname(),
            "gpg_verl": gpg_verl.__version__,
            "veRL": verl.__version__,
            "loss": loss.__module__,
        }

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[attr-defined]
    def check_passes(self) -> dict[str, str | None]:
        return self.actor.check_passes()  # type: ignore[attr-defined]  # GPGTrainingWorker's


class GPGActor(CheckPassesMixin, ActorRolloutRefWorker):
    actor_worker_cls = GPGTrainingWorker


class GPGDetachedActor(CheckPassesMixin, DetachActorWorker):
    actor_worker_cls = GPGTrainingWorker


def check_versions(answers: Sequence[dict[str, str]]) -> str:
    """A line for the log, from what each actor worker answers to `versions`.

    Raises:
        RuntimeError: a Ray node has another version of gpg_verl than the trainer, or another loss behind `gpg`: named.
    """
    wrong = [
        f"worker {rank} on node {answer['host']}: loss from {answer['loss']}, gpg_verl {answer['gpg_verl']}, "
        f"veRL {answer['veRL']}"
        for rank, answer in enumerate(answers)
        if (answer["loss"], answer["gpg_verl"]) != (registry.__name__, gpg_verl.__version__)
    ]
    if wrong:
        raise RuntimeError(
            f"algorithm.adv_estimator=gpg stops before step 1: {len(wrong)} of {len(answers)} actor workers would not "
            f"train with gpg_verl {gpg_verl.__version__}: {'; '.join(wrong)}. Install the same gpg-verl on every Ray "
            "node, and do not set VERL_USE_EXTERNAL_PLUGINS=none."
        )
    return f"gpg_verl: all {len(answers)} actor workers answer `gpg` with gpg_verl {gpg_verl.__version__}"
