"""The training half of a veRL step on recorded rollouts: real trainers, real engines, no rollout, no Ray.

A `Recording` stands in for TransferQueue and the rollout, `Actors` for Ray's worker group; everything between (old
log-probs, reference, advantages, update) is the code of the trainer class that is given. Used by step.py.

    with Actors(config, ranks=2) as actors:
        step = recorded_step(GPGTrainerSync, config, Recording.random(prompts=8, n=4), actors)
        metrics = step()
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import os
import socket
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import torch.multiprocessing as mp
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorData, NonTensorStack
from transfer_queue import KVBatchMeta


def engine_overrides(precision: str, attention: str = "sdpa") -> list[str]:
    """The overrides of an engine on this machine's device: `+preset=cpu`, or a GPU's defaults but for the precision
    (fp32, bf16). fp32 takes sdpa, as flash-attn has none.
    """
    actor, model = "actor_rollout_ref.actor", "actor_rollout_ref.model"
    if not torch.cuda.is_available():
        return ["+preset=cpu", f"{actor}.fsdp_config.mixed_precision.param_dtype={precision}"]
    mixed = f"{{param_dtype: {precision}, reduce_dtype: fp32, buffer_dtype: fp32}}"
    return [
        "trainer.nnodes=1",
        "trainer.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.name=vllm",
        f"{actor}.strategy=fsdp2",
        f"+{actor}.fsdp_config.mixed_precision={mixed}",
        f"+{model}.override_config.attn_implementation={'sdpa' if precision == 'fp32' else attention}",
        f"{model}.use_remove_padding=True",
    ]


def composed(overrides: list[str], gpg: bool = True):
    """veRL's whole config; `gpg`: with what GPG implies."""
    from gpg_verl.launch.check import compose
    from gpg_verl.launch.settle import settle

    config = compose(overrides)
    contradictions = settle(config, overrides).contradictions if gpg else []
    assert contradictions == [], contradictions
    return config


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


class Recording:
    """Rollouts as veRL's agent loop leaves them in TransferQueue, and the two of its calls that a step makes.

    Args:
        prompts, responses: token ids of each row.
        rewards: (rows,) of each response.
        uids: (rows,) the prompt's uid.
        outputs: (rows,) number of the row among its session's outputs; 0 where there is one.
        sessions: (rows,) number of the response among its group's; by default counted.
        vision: (rows,) for a vision-language model, (position ids (4, tokens), the model's inputs for the row's images
            by name, {} for a row without one).
    """

    partition = "train"

    def __init__(
        self, prompts, responses, rewards, uids, sessions=None, outputs=None, rollout_log_probs=None, vision=None
    ):
        count = len(prompts)
        outputs = outputs or [0] * count
        if sessions is None:
            sessions = [uids[:i].count(uid) for i, uid in enumerate(uids)]
        self.keys = [f"{u}_{s}_{o}" for u, s, o in zip(uids, sessions, outputs, strict=True)]
        self.rows, self.tags = {}, {}
        self.others = {}  # rows and tags of other partitions
        for i, key in enumerate(self.keys):
            ids = torch.cat([prompts[i], responses[i]])
            ones = torch.ones_like(responses[i])
            reward = torch.zeros(len(responses[i]))
            reward[-1] = rewards[i]
            log_probs = torch.zeros(len(responses[i])) if rollout_log_probs is None else rollout_log_probs[i]
            self.rows[key] = {
                "prompts": prompts[i],
                "responses": responses[i],
                "response_mask": ones,
                "loss_mask": ones,
                "input_ids": ids,
                "position_ids": torch.arange(len(ids)) if vision is None else vision[i][0],
                "rm_scores": reward,
                "rollout_log_probs": log_probs,
                "uid": uids[i],
            }
            if vision is not None:
                self.rows[key]["multi_modal_inputs"] = vision[i][1]
            self.tags[key] = {
                "prompt_len": len(prompts[i]),
                "response_len": len(responses[i]),
                "seq_len": len(ids),
                # Log-probs that are made up come from no weights that the trainer ever had.
                "min_global_steps": 0 if rollout_log_probs else -1,
                "max_global_steps": 0,
            }

    @classmethod
    def random(
        cls,
        rewards: list[list[float]],
        *,
        vocabulary: int,
        prompt: int,
        response,
        seed: int = 0,
        shuffle=True,
        words: int | None = None,
    ):
        """Random tokens. rewards: of each group's responses; response: (low, high), the bounds of the length; words: of
        how many different tokens responses are made (the fewer, the more beginnings they share), by default of all.
        """
        generator = np.random.default_rng(seed)
        rows = [(f"uid{g:05d}", reward) for g, group in enumerate(rewards) for reward in group]
        order = generator.permutation(len(rows)) if shuffle else range(len(rows))
        rows = [rows[i] for i in order]
        lengths = [int(generator.integers(response[0], response[1] + 1)) for _ in rows]
        prompts = {
            uid: torch.from_numpy(generator.integers(4, vocabulary, prompt))
            for uid in dict.fromkeys(u for u, _ in rows)
        }
        last = vocabulary if words is None else 4 + words
        return cls(
            prompts=[prompts[uid] for uid, _ in rows],
            responses=[torch.from_numpy(generator.integers(4, last, length)) for length in lengths],
            rewards=[reward for _, reward in rows],
            uids=[uid for uid, _ in rows],
        )

    def batch(self) -> KVBatchMeta:
        return KVBatchMeta(keys=list(self.keys), tags=[self.tags[k] for k in self.keys], partition_id=self.partition)

    # ---- TransferQueue's calls, by the names and arguments that veRL uses

    def kv_batch_get(self, keys, partition_id, select_fields=None) -> TensorDict:
        rows = [self._in(partition_id)[0][key] for key in keys]
        names = [name for name in (select_fields or rows[0]) if all(name in row for row in rows)]
        data = TensorDict(batch_size=len(rows))
        for name in names:
            values = [row[name] for row in rows]
            tensors = isinstance(values[0], torch.Tensor)
            data[name] = jagged(values) if tensors else NonTensorStack(*map(NonTensorData, values))
        return data

    def kv_batch_put(self, keys, partition_id, fields=None, tags=None) -> KVBatchMeta:
        rows, all_tags = self._in(partition_id)
        for name, values in fields.items():
            for key, value in zip(keys, list(values), strict=True):
                rows.setdefault(key, {})[name] = value.data if isinstance(value, NonTensorData) else value
        for key, tag in zip(keys, tags or [], strict=False):
            all_tags[key] = tag
        return KVBatchMeta(keys=list(keys), tags=[all_tags[key] for key in keys], partition_id=partition_id)

    def kv_clear(self, keys, partition_id) -> None:
        for key in keys:
            for of_key in self._in(partition_id):
                del of_key[key]

    def _in(self, partition_id):
        if partition_id == self.partition:
            return self.rows, self.tags
        return self.others.setdefault(partition_id, ({}, {}))


@contextlib.contextmanager
def in_place_of_transfer_queue(recording: Recording):
    import verl.trainer.ppo.padding_utils as padding
    import verl.trainer.ppo.v1.trainer_base as base

    from gpg_verl.training import trainer

    with contextlib.ExitStack() as stack:
        for module in (base, padding, trainer):
            stack.enter_context(mock.patch.object(module, "tq", recording))
        yield


def recorded_step(trainer_class, config, recording: Recording, actors: Actors, processor=None):
    """A function that does one step of a new trainer of this class on the recording, and returns its metrics and the
    seconds of each stage under veRL's names. The trainer is the function's attribute `trainer`. `processor`: the
    vision-language model's, as veRL loads it.
    """
    # A trainer writes into both.
    config, recording = copy.deepcopy(config), copy.deepcopy(recording)
    trainer = trainer_class(config)
    trainer.actor_rollout_wg = trainer.ref_policy_wg = actors
    actors.recording = recording
    trainer.ref_in_actor = False
    trainer.distillation_config = None
    trainer.global_steps = 1
    trainer.curr_step_profile = False
    trainer.timing_raw = {}
    trainer.train_dataset = None
    trainer.tokenizer = SimpleNamespace(eos_token_id=1, pad_token_id=0)
    trainer.processor = processor
    trainer.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
    trainer.checkpoint_manager = SimpleNamespace(sleep_replicas=lambda: None)
    trainer.replay_buffer = SimpleNamespace(sample=lambda **_: (recording.batch(), {}), failure_keys={"train": ()})
    trainer.prepare_step = dict

    def step() -> tuple[dict, dict]:
        metrics, timing = {}, {}
        with in_place_of_transfer_queue(recording):
            trainer.step(metrics, timing)
        return metrics, timing

    step.trainer = trainer
    return step


class Actors:
    """veRL's worker group as the trainer calls it, over one process a rank (one rank: this process).

    Args:
        config: veRL's whole config; its `actor_rollout_ref` makes the workers, `gpg_verl.training.actor.GPGActor`.
        ranks: workers; with Ulysses, as many as the config says have a data-parallel rank together.
        prepare: called in each worker's process before it is made.
    """

    def __init__(self, config, ranks: int = 1, prepare=None):
        self.ranks = ranks
        self.together = config.actor_rollout_ref.actor.fsdp_config.get("ulysses_sequence_parallel_size") or 1
        data_parallel = [rank // self.together for rank in range(ranks)]
        self._dispatch_info = {"actor": data_parallel, "ref": data_parallel}
        port = free_port()
        if ranks == 1:
            if prepare is not None:
                prepare()
            self.made_the_group = not torch.distributed.is_initialized()
            self.local = Rank(config, 0, 1, port)
            return
        self.local = None
        context = mp.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, config, rank, ranks, port, prepare), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.local is not None:
            self.local = None
            gc.collect()  # the model's wrappers hold each other; the next Actors' peak of memory is its own
            if self.made_the_group:
                torch.distributed.destroy_process_group()
            return
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(timeout=20)
            process.kill()

    def call(self, name: str, *arguments_of_ranks: tuple):
        """Calls the method on every rank, with one tuple of arguments a rank, or none at all; a list of the answers."""
        arguments = list(arguments_of_ranks) or [()] * self.ranks
        if self.local is not None:
            return [getattr(self.local, name)(*arguments[0])]
        for pipe, argument in zip(self.pipes, arguments, strict=True):
            pipe.send((name, argument))
        answers = [pipe.recv() for pipe in self.pipes]
        for answer in answers:
            if isinstance(answer, str):
                raise RuntimeError(answer)
        return [answer[0] for answer in answers]

    # ---- what veRL's trainer calls

    def update_actor(self, batch: KVBatchMeta):
        return self.call("update_actor", *self._parts(batch))[0]

    def check_passes(self) -> list[dict[str, str | None]]:
        return self.call("check_passes")

    def compute_log_prob(self, batch: KVBatchMeta) -> KVBatchMeta:
        return self._log_prob("compute_log_prob", batch)

    def compute_ref_log_prob(self, batch: KVBatchMeta) -> KVBatchMeta:
        return self._log_prob("compute_ref_log_prob", batch)

    def _log_prob(self, name, batch):
        outputs = self.call(name, *self._parts(batch))[:: self.together]
        for part, output in zip(batch.chunk(self.ranks // self.together), outputs, strict=True):
            for field in ("log_probs", "entropy"):
                if field in output:
                    values = TensorDict({field: output[field]}, batch_size=len(part))
                    self.recording.kv_batch_put(part.keys, part.partition_id, values)
        return batch

    def _parts(self, batch):
        parts = [
            (self.recording.kv_batch_get(part.keys, part.partition_id).exclude("uid"), part.extra_info)
            for part in batch.chunk(self.ranks // self.together)
        ]
        return [parts[rank] for rank in self._dispatch_info["actor"]]


class Rank:
    """One actor worker; `gradients` collects what each optimizer step saw, before clipping, over all ranks."""

    def __init__(self, config, rank: int, ranks: int, port: int):
        place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "RAY_LOCAL_WORLD_SIZE": ranks}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in place.items()})
        from gpg_verl.cpu import use_all_cores

        use_all_cores()
        self.config = config
        self.worker, self.reference = self.make("actor"), None
        self.engine = self.worker.actor.engine
        self.gradients: list[torch.Tensor] = []
        self.optimizer_seconds = 0.0
        self.initial = [p.detach().clone() for p in self.engine.module.parameters()]
        self.step = self.engine.optimizer_step

    def make(self, role: str):
        from gpg_verl.training.actor import GPGActor

        worker = GPGActor(copy.deepcopy(self.config.actor_rollout_ref), role=role)
        worker.init_model()
        return worker

    def record_gradients(self, learning_rate: float) -> None:
        """From now on: plain SGD, no clipping, and every gradient kept."""
        self.engine.optimizer = torch.optim.SGD(self.engine.module.parameters(), lr=learning_rate)
        object.__setattr__(self.engine.optimizer_config, "clip_grad", 1e30)
        self.engine.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(self.engine.optimizer, factor=1.0)

        def step():
            self.gradients.append(flat(p.grad for p in self.engine.module.parameters() if p.grad is not None))
            return self.step()

        self.engine.optimizer_step = step

    def time_optimizer(self) -> None:
        def step():
            started = time.perf_counter()
            result = self.step()
            self.optimizer_seconds += time.perf_counter() - started
            return result

        self.engine.optimizer_step = step

    def reset(self, loss_agg_mode: str | None = None, checked: bool = False) -> None:
        """The initial parameters again, nothing recorded, and its passes not yet checked: as a new worker, or with
        `checked` as one that has made an update.
        """
        with torch.no_grad():
            for parameter, initial in zip(self.engine.module.parameters(), self.initial, strict=True):
                parameter.copy_(initial)
        self.gradients, self.optimizer_seconds = [], 0.0
        if not checked:
            self.worker.actor.passes = None
        if loss_agg_mode is not None:
            object.__setattr__(self.worker.loss_fn.keywords["config"], "loss_agg_mode", loss_agg_mode)

    def recorded(self) -> tuple[list[torch.Tensor], torch.Tensor, int]:
        """The gradients, the parameters, and how often the learning-rate schedule advanced."""
        return self.gradients, flat(self.engine.module.parameters()), self.engine.lr_scheduler.last_epoch

    def seconds(self) -> float:
        return self.optimizer_seconds

    def check_passes(self) -> dict[str, str | None]:
        return self.worker.check_passes()

    def update_actor(self, data, extra_info):
        return self.worker.update_actor(with_info(data, extra_info))

    def compute_log_prob(self, data, extra_info):
        return self.worker.compute_log_prob(with_info(data, extra_info))

    def compute_ref_log_prob(self, data, extra_info):
        if self.reference is None:
            self.reference = self.make("ref")
        return self.reference.compute_ref_log_prob(with_info(data, extra_info))

    def start_memory(self) -> float:
        """Forgets the peak so far (Linux). GB of this process now, without what it has freed and kept; on a GPU, of its
        tensors.
        """
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            return self.peak_memory()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return self.peak_memory()

    def peak_memory(self) -> float:
        """GB of this process, or of its tensors, at their peak since `start_memory`."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 1e9
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def with_info(data: TensorDict, extra_info: dict) -> TensorDict:
    for key, value in extra_info.items():
        data[key] = NonTensorData(value)
    return data


def flat(tensors) -> torch.Tensor:
    from torch.distributed.tensor import DTensor

    whole = (t.full_tensor() if isinstance(t, DTensor) else t for t in tensors)
    return torch.cat([t.detach().flatten() for t in whole]).float().cpu()


def serve(pipe, config, rank, ranks, port, prepare) -> None:
    import verl  # noqa: F401  loads the plugin

    if prepare is not None:
        prepare()
    actor = None
    while True:
        request = pipe.recv()
        if request is None:
            return
        try:
            actor = actor or Rank(config, rank, ranks, port)
            name, arguments = request
            pipe.send((getattr(actor, name)(*arguments),))
        except BaseException:
            pipe.send(traceback.format_exc())


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
