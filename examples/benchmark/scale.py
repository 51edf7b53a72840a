"""What GPG's own code in the trainer process costs by rows and by ranks, part by part, and its questions by Ray actors.

    python examples/benchmark/scale.py --rows 8192 65536 --ranks 8 1024      # 2 GB
    python examples/benchmark/scale.py --actors 2 8 32                      # starts a Ray of its own, 3 GB for 32

Seconds are processor seconds of one thread, the best of --repeat: they hardly depend on what else the machine does.
Beside ours: veRL's balancing, and a copy of its batch metadata. driver.py has the same step in one piece, on the clock.
"""

from __future__ import annotations

import argparse
import os
import pickle
import time
import uuid
from collections import defaultdict
from types import SimpleNamespace
from unittest import mock

os.environ["VERL_PLATFORM"] = "cpu"

import driver
import psutil
import torch
from rich.console import Console
from rich.table import Table


def seconds(function, repeat: int) -> tuple[float, object]:
    """(the least processor seconds of a call, its result)."""
    best, result = float("inf"), None
    for _ in range(repeat):
        started = time.process_time()
        result = function()
        best = min(best, time.process_time() - started)
    return best, result


def parts_of_a_step(rows: int, ranks: int, group: int, tokens: int, repeat: int) -> dict[str, float]:
    from transfer_queue import KVBatchMeta
    from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions

    from gpg_verl.algorithm.advantage import session_statistics
    from gpg_verl.algorithm.ragged import repeat as repeated
    from gpg_verl.algorithm.ragged import row_lengths, row_rewards
    from gpg_verl.algorithm.updates import assign, balance_rows, plan_updates
    from gpg_verl.training.actor import Plan
    from gpg_verl.training.keys import RowKey, sessions_of
    from gpg_verl.training.metrics import StepMetrics

    meta, fields = driver.batch(rows, tokens, group)
    lengths = [tag["response_len"] for tag in meta.tags]
    work = calculate_workload(torch.tensor([tag["seq_len"] for tag in meta.tags]))
    seen: dict[str, float] = {}

    def time_of(name, function):
        seen[name], result = seconds(function, repeat)
        return result

    offsets, rewards, mask = (
        fields["rm_scores"].offsets(),
        fields["rm_scores"].values(),
        fields["response_mask"].values(),
    )
    keys = time_of("the keys, read", lambda: [RowKey.of(key) for key in meta.keys])
    time_of("sessions of the keys", lambda: sessions_of(keys))
    uids = [key.uid for key in keys]
    per_row = time_of(
        "scores and lengths of the rows", lambda: (*row_rewards(rewards, offsets), row_lengths(mask, offsets))
    )
    statistics = time_of(
        "group statistics",
        lambda: session_statistics(
            per_row[0], uids, per_row[3], None, f_norm="1", alpha="sample", magnitudes=per_row[1]
        ),
    )
    time_of("advantages of the tokens", lambda: repeated(statistics.advantages, offsets.diff()))
    loads = work.tolist()
    time_of("balancing the batch", lambda: balance_rows(range(rows), loads, ranks))
    mini_batches = time_of("mini-batches by uid", lambda: assign(uids, 1))
    has_gradient = statistics.valid.tolist()
    updates = time_of(
        "the plan",
        lambda: plan_updates(
            mini_batches,
            [],
            has_gradient,
            lengths,
            ranks=ranks,
            micro_batch_size=None,
            loss_agg_mode="token-mean",
            work=loads,
            prompts=[(uid, 128.0) for uid in uids],
        ),
    )
    kept = [meta.keys[i] for part in updates[0].rows for i in part]
    time_of("veRL's metadata of the rows kept", lambda: meta.select_keys(kept))
    explain = StepMetrics(forward_saved=True, checkpointing=False)

    def explained():
        explain.begin()
        explain.sampled(statistics, None)
        explain.updated(
            updates, 1, response_tokens=lengths, sequence_tokens=lengths, real=range(rows), seconds=1.0, observed=None
        )
        return explain.end()

    time_of("metrics", explained)
    seen["together"] = sum(seen.values())
    seen["not run: veRL's balancing"], _ = seconds(
        lambda: get_seqlen_balanced_partitions(work, k_partitions=ranks, equal_size=True), 1
    )
    seen["veRL: a copy of the batch's metadata"], _ = seconds(
        lambda: KVBatchMeta(keys=meta.keys, tags=meta.tags, partition_id="train"), 1
    )
    plan = Plan.of(updates, epochs=1, observe=True, correction=None, passes="trees")
    seen["bytes of the Plan"] = len(pickle.dumps(plan))
    return seen


def a_look(prompts: int, group: int, repeat: int) -> dict[str, float]:
    """One look at the rollout under β_th, when half of the prompts are judged and 1 % have finished since the last."""
    import transfer_queue
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

    import gpg_verl.training.replay_buffer as ours
    from gpg_verl.algorithm.refill import Refill

    uids = [str(uuid.uuid4()) for _ in range(prompts)]
    half, new = prompts // 2, prompts // 100
    rows = {f"{uid}_{i}_0": {"response_len": 9} for uid in uids[: half + new] for i in range(group)}
    listing: dict = {uid: {"is_prompt": True, "status": "finished", "global_steps": 1} for uid in uids[: half + new]}
    listing |= {uid: {"is_prompt": True, "status": "running", "global_steps": 1} for uid in uids[half + new :]}
    listing |= rows
    names = ("partitions", "prompt_global_steps", "pending_keys", "running_keys", "finished_keys", "failure_keys")
    buffer = SimpleNamespace(**{name: defaultdict(set if name.endswith("keys") else dict) for name in names})
    sample = object.__new__(ours.RefilledSample)
    sample.buffer, store = buffer, driver.Store({})
    store.kv_list = lambda: {"train": listing}
    rewards = torch.rand(new * group).round()
    one_token_each = torch.nested.nested_tensor_from_jagged(rewards, torch.arange(new * group + 1))
    store.fields["rm_scores"] = one_token_each
    seen = {}

    def start():
        sample.refill = Refill(prompts, 1.0)
        sample.refill.dispatch(uids)
        for uid in uids[:half]:
            sample.refill.judge(uid, ours.GroupStatus.ZERO_VARIANCE)

    with mock.patch.object(transfer_queue, "kv_list", store.kv_list), mock.patch.object(ours, "tq", store):
        seen["veRL: reading the listing"], _ = seconds(
            lambda: ReplayBuffer._sync_metadata_from_transfer_queue(buffer), repeat
        )
        start()
        seen["agreeing with TransferQueue"], _ = seconds(sample._agree_with_transfer_queue, repeat)
        best = float("inf")
        for _ in range(repeat):
            start()
            best = min(best, seconds(sample._judge, 1)[0])
        seen["judging what finished"] = best
        seen["cut, ask"], _ = seconds(lambda: (sample.refill.select(), sample.refill.num_prompts_to_request()), repeat)
    seen["bytes of the listing"] = len(pickle.dumps({"train": listing}))
    return seen


def questions(actors: list[int]) -> dict[int, dict[str, float]]:
    """The start check's call (without veRL's import, which real workers have behind them) and the heartbeat."""
    import ray

    from gpg_verl.guards.liveness import Heartbeat

    ray.init(num_cpus=64, include_dashboard=False, object_store_memory=100_000_000)

    @ray.remote(num_cpus=1)
    class Actor:
        pass

    def answer(_worker):
        return {"host": "node", "module": "gpg_verl.training.registry", "version": "1", "verl": "1"}

    seen = {}
    handles: list = []
    for number in actors:
        handles += [Actor.remote() for _ in range(number - len(handles))]
        ray.get([handle.__ray_ready__.remote() for handle in handles])
        memory = psutil.Process().memory_info().rss
        named = [(str(i), handle) for i, handle in enumerate(handles)]
        beat = Heartbeat(named.copy)
        costs = {}
        started, on_processor = time.perf_counter(), time.process_time()
        ray.get([handle.__ray_call__.remote(answer) for handle in handles])
        costs["start check, on the clock"] = time.perf_counter() - started
        costs["start check"] = time.process_time() - on_processor
        beats = []
        for _ in range(10):
            started = time.process_time()
            beat()
            beats.append(time.process_time() - started)
            time.sleep(0.2)
        costs["a heartbeat"] = min(beats)
        costs["driver memory, MB"] = (psutil.Process().memory_info().rss - memory) / 1e6
        seen[number] = costs
    ray.shutdown()
    return seen


def show(title: str, columns: dict[str, dict[str, float]]) -> None:
    table = Table(title=title)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for row in next(iter(columns.values())):
        table.add_row(row, *(f"{of[row]:,.0f}" if "bytes" in row else f"{of[row]:.4f}" for of in columns.values()))
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[])
    parser.add_argument("--ranks", type=int, nargs="*", default=[8])
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--actors", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.rows:
        import verl  # noqa: F401

        columns = {
            f"{rows} rows, {ranks} ranks": parts_of_a_step(
                rows, ranks, arguments.group, arguments.tokens, arguments.repeat
            )
            for rows in arguments.rows
            for ranks in arguments.ranks
        }
        show("a step, processor seconds", columns)
        looks = {
            f"{r // arguments.group} prompts": a_look(r // arguments.group, arguments.group, arguments.repeat)
            for r in arguments.rows
        }
        show("a look under β_th, processor seconds", looks)
    if arguments.actors:
        show("questions to actors, seconds", {str(n): of for n, of in questions(arguments.actors).items()})


if __name__ == "__main__":
    main()
