"""β_th in veRL's replay buffers over a real TransferQueue, with a rollout that finishes groups as the test says."""

from __future__ import annotations

import random

import pytest
import torch
from test_refill import reference

S, BETA_TH = 4, 0.5

# Rewards of a group's sessions, by verdict; capitals: some, or all, have none.
NAN = float("nan")
REWARDS = {
    "v": [1.0, 0.0, 0.0],
    "f": [0.0, 0.0, 0.0],
    "e": [],
    "V": [1.0, NAN, 0.0],
    "F": [NAN, 0.0, 0.0],
    "E": [NAN, NAN, NAN],
}


@pytest.fixture(scope="module")
def tq():
    import ray
    import transfer_queue
    from omegaconf import OmegaConf

    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    transfer_queue.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
    yield transfer_queue
    transfer_queue.close()
    ray.shutdown()


class Rollout:
    """Group i of the stream has the verdict `stream[i]`; at each poll, some of those in flight finish, in any order."""

    def __init__(self, tq, mode: str, stream: str, seed: int = 0, drop_unscored: bool = False, **sampler):
        from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

        from gpg_verl.algorithm.refill import Refill
        from gpg_verl.training.replay_buffer import RefilledSample

        self.tq, self.stream, self.random = tq, stream, random.Random(seed)
        self.uids, self.in_flight, self.handed_back, self.stops, self.step = [], [], [], 0, 1
        options = {"max_off_policy_threshold": 2, "max_off_policy_strategy": "drop", **sampler}
        self.buffer = (ReplayBuffer if mode == "sync" else ReplayBufferAsync)(
            trainer_mode=mode, trainer_config={}, sampler_kwargs={}, refill_fn=self.dispatch, **options
        )
        self.buffer._wait_for_next_poll = self.poll
        ends = (self.stop, self.handed_back.extend) if mode == "sync" else ()
        refill = Refill(S, BETA_TH, max_batches=5)
        self.sampler = RefilledSample(self.buffer, refill, *ends, drop_unscored=drop_unscored)
        self.buffer.sample = self.sampler

    def dispatch(self, n: int) -> int:
        uids = [f"{self.step}-{len(self.uids) + i}" for i in range(n)]
        self.sampler.refill.dispatch(uids)
        tags = [{"is_prompt": True, "status": "pending", "global_steps": self.step}] * n
        self.tq.kv_batch_put(keys=uids, partition_id="train", tags=tags)
        self.uids += uids
        self.in_flight += uids
        return n

    def poll(self, partition_id: str, last_debug_time: float) -> float:
        assert self.in_flight or self.stops, "the sampler waits for nothing"
        for uid in self.random.sample(
            self.in_flight, self.random.randint(min(1, len(self.in_flight)), len(self.in_flight))
        ):
            self.finish(uid)
        return last_debug_time

    def finish(self, uid: str) -> None:
        verdict = self.stream[self.uids.index(uid)]
        for session, reward in enumerate(REWARDS[verdict]):
            # Two outputs a session: only the last one's reward counts, the other's would make every group valid.
            self.put(uid, session, [float(session), reward])
        self.tq.kv_batch_put([uid], "train", tags=[{"status": "failure" if verdict == "e" else "finished"}])
        self.in_flight.remove(uid)

    def put(self, uid: str, session: int, rewards: list[float]) -> None:
        from tensordict import TensorDict

        lengths = [self.random.randint(1, 5) for _ in rewards]
        scores = [torch.tensor([0.0] * (length - 1) + [r]) for r, length in zip(rewards, lengths, strict=True)]
        fields = {"rm_scores": torch.nested.as_nested_tensor(scores, layout=torch.jagged)}
        self.tq.kv_batch_put(
            [f"{uid}_{session}_{i}" for i in range(len(rewards))],
            "train",
            fields=TensorDict(fields, batch_size=len(rewards)),
            tags=[{"response_len": length, "global_steps": self.step} for length in lengths],
        )

    def stop(self) -> None:
        self.stops += 1
        for uid in list(self.in_flight):
            self.finish(uid)

    def sample(self):
        return self.buffer.sample(global_steps=self.step, partition_id="train", batch_size=S)

    def left(self) -> dict[str, dict]:
        return self.tq.kv_list("train").get("train", {})


@pytest.fixture
def rollout(tq):
    def make(mode: str, stream: str, **options) -> Rollout:
        left = (tq.kv_list("train") or {}).get("train", {})
        if left:
            tq.kv_clear(keys=list(left), partition_id="train")
        return Rollout(tq, mode, stream + "v" * 100, **options)

    return make


def groups(batch) -> list[str]:
    return list(dict.fromkeys(key.split("_")[0] for key in batch.keys))


@pytest.mark.parametrize(
    ("stream", "seed"), [(s, i) for s in ("ffffvfv", "vfffv", "vvvvff", "efvefv") for i in range(3)]
)
def test_sync_trains_on_the_prefix_and_leaves_nothing_behind(rollout, stream, seed):
    r = rollout("sync", stream, seed=seed)
    r.dispatch(S)
    batch, metrics = r.sample()
    length, selected = reference(r.stream, S, BETA_TH, 5 * S) if "e" not in stream else (6, [2, 5, 1, 4])
    assert groups(batch) == [r.uids[i] for i in selected]
    assert batch.keys == [f"{uid}_{s}_{i}" for uid in groups(batch) for s in range(3) for i in range(2)]
    assert [tag["global_steps"] for tag in batch.tags] == [1] * len(batch)
    assert r.handed_back == r.uids[length:]
    assert set(r.left()) == set(batch.keys)
    assert r.sampler.refill.order == ()
    assert len(r.uids) == S + metrics["gpg/prompts_refilled_sum"]
    assert metrics["gpg/prompts_judged_sum"] == length
    assert metrics["gpg/prompts_used_sum"] == S
    assert metrics["gpg/prompts_handed_back_sum"] == len(r.uids) - length


def test_asynchronous_steps_go_on_where_the_last_one_was_cut(rollout):
    r = rollout("colocate_async", "ffvfffvfvvfffffvvf", seed=1)
    r.dispatch(S)  # veRL's warm-up batch
    start = 0
    for r.step in (1, 2, 3):
        r.dispatch(S)
        batch, metrics = r.sample()
        length, selected = reference(r.stream[start:], S, BETA_TH, 5 * S)
        assert groups(batch) == [r.uids[start + i] for i in selected]
        start += length
        rest = r.uids[start:]
        assert list(r.sampler.refill.order) == rest
        assert {key.split("_")[0] for key in r.left()} == {*groups(batch), *rest}
        assert len(rest) >= S  # the head start
        assert metrics["gpg/prompts_handed_back_sum"] == 0
        r.tq.kv_clear(keys=batch.keys, partition_id="train")
    assert r.stops == 0


def test_asynchronous_modes_keep_verls_evictions(rollout):
    r = rollout("colocate_async", "vvefvvvv")
    r.dispatch(2 * S)
    for uid in list(r.in_flight):
        r.finish(uid)
    batch, metrics = r.sample()
    assert groups(batch) == [r.uids[i] for i in (0, 1, 4, 3)]
    assert metrics["training/rollout_failure/evicted_samples"] == metrics["gpg/prompts_refilled_sum"] == 1
    r.step = 4  # what step 1 dispatched is now older than two versions
    r.dispatch(S)
    batch, metrics = r.sample()
    assert metrics["training/off_policy/evicted_samples"] > 0
    assert all(uid.startswith("4-") for uid in groups(batch))


def test_the_wait_strategy_holds_sampling_back(rollout):
    r = rollout("colocate_async", "", max_off_policy_strategy="wait", max_off_policy_threshold=1)
    r.dispatch(2 * S)
    batch, _ = r.sample()
    assert groups(batch) == r.uids[:S]
    assert r.in_flight == []


def test_a_hopeless_step_ends_with_what_there_is(rollout, caplog):
    r = rollout("sync", "fffvf" + "f" * 100)
    r.dispatch(S)
    batch, metrics = r.sample()
    assert groups(batch) == [r.uids[i] for i in (3, 0, 1, 2)]
    assert len(r.uids) == 5 * S
    assert metrics["gpg/refill_bound_reached_sum"] == 1
    assert "algorithm.gpg.max_batches" in caplog.text


def test_a_step_without_a_single_row_ends_the_run(rollout):
    r = rollout("sync", "e" * 100)
    r.dispatch(S)
    with pytest.raises(RuntimeError, match="all of the step's 20 prompts failed"):
        r.sample()


@pytest.mark.parametrize("mode", ["sync", "colocate_async"])
def test_responses_without_a_reward_are_left_out_of_the_verdicts(rollout, mode):
    r = rollout(mode, "EFfVEv", drop_unscored=True)
    r.dispatch(S)
    batch, metrics = r.sample()
    assert groups(batch) == [r.uids[i] for i in (3, 5, 1, 2)]
    assert metrics["gpg/prompts_judged_sum"] == 6
    assert len(batch) == S * 3 * 2  # the trainer takes the rows out


@pytest.mark.parametrize(
    ("stream", "drop_unscored", "error"),
    [
        ("fVff", False, "the rewards of 1 of 12 rows are NaN or infinite"),
        ("E" * 100, True, "no response of the step's 20 prompts has a reward"),
    ],
)
def test_responses_without_a_reward_end_the_run(rollout, stream, drop_unscored, error):
    r = rollout("sync", stream, drop_unscored=drop_unscored)
    r.dispatch(S)
    for uid in r.uids[:]:
        r.finish(uid)
    with pytest.raises((ValueError, RuntimeError), match=error):
        r.sample()


def test_groups_that_the_sampler_was_not_told_of_take_part(rollout):
    """veRL's recorded rollouts are put into TransferQueue without a dispatch."""
    r = rollout("sync", "vvff")
    r.sampler.refill.dispatch, dispatch = lambda uids: None, r.sampler.refill.dispatch
    r.dispatch(S)
    r.sampler.refill.dispatch = dispatch
    for uid in list(r.in_flight):
        r.finish(uid)
    batch, _ = r.sample()
    assert set(groups(batch)) == set(r.uids)


def test_validation_goes_verls_way(rollout):
    r = rollout("sync", "")
    r.tq.kv_batch_put(["q"], "val", tags=[{"is_prompt": True, "status": "finished", "global_steps": 0}])
    r.tq.kv_batch_put(["q_0_0"], "val", tags=[{"status": "success"}])
    batch, metrics = r.buffer.sample(global_steps=0, partition_id="val", batch_size=1)
    assert (batch.keys, metrics) == (["q_0_0"], {})
    r.tq.kv_clear(keys=["q_0_0"], partition_id="val")
