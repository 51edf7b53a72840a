"""Rewards: what is a number and what is none, what a run says of a response without one, what a group is without."""

from __future__ import annotations

import asyncio
import json
import math
import types

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from gpg_verl.guards import rewards
from gpg_verl.guards.guarded_run import GuardedRun
from gpg_verl.guards.rewards import NoReward, RewardLoopWorkerChecked, first_unscored, rewards_checked

REWARDS = """
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch

class Judge(Exception):
    pass

def give(value):
    def compute_score(**kwargs):
        return value
    return compute_score

def fail(error):
    def compute_score(**kwargs):
        raise error
    return compute_score

async def a_number(**kwargs):
    return 0.5

async def numpys_number(**kwargs):
    return {"score": np.float32(0.5), "why": "half"}

async def raises_late(**kwargs):
    raise Judge("no answer\\nin 3 s")

"""
FAILS = {
    "give(None)": "None is no number",
    "give({'score': None, 'acc': 0.0})": "None is no number",
    "give('1.0')": "'1.0' is no number",
    "give(float('nan'))": "nan is no number",
    "give(-float('inf'))": "-inf is no number",
    "give(1e39)": "1e+39 is no number",  # in float32
    "give([1.0])": "[1.0] is no number",
    "give(1j)": "1j is no number",
    "give(np.complex64(1))": "(1+0j) is no number",
    "give(np.str_('1.0'))": "'1.0' is no number",
    "give(np.float32('nan'))": "nan is no number",
    "give(Decimal('sNaN'))": "Decimal('sNaN') is no number",
    "give(10**400)": f"1{'0' * 58}… is no number",
    "give(np.ones(2))": "array([1., 1.]) is no number",
    "give(torch.ones(2))": "tensor([1., 1.]) is no number",
    "give({'acc': 1.0})": "KeyError: 'score'",
    "fail(ZeroDivisionError('division by zero'))": "ZeroDivisionError: division by zero",
    "fail(StopIteration())": "RuntimeError: StopIteration",
    "fail(SystemExit(3))": "SystemExit: 3",
    "fail(Judge('x' * 1000))": f"Judge: {'x' * 192}…",
    "raises_late": "Judge: no answer in 3 s",
    "lambda **kwargs: missing": "NameError: name 'missing' is not defined",
    "lambda text: 1.0": "TypeError: <lambda>() got an unexpected keyword argument 'data_source'",
}
# A finite number of whatever type: alone, and under the key of a dict.
NUMBERS = {
    0: ["0", "False", "np.int64(0)", "torch.tensor(0)", "Fraction(0)", "Decimal(0)"],
    1: ["True", "np.float32(1)", "np.bool_(True)", "np.array(True)", "torch.tensor(True)", "torch.tensor(1.0)"],
    2: ["2", "np.int64(2)", "np.array(2)", "torch.tensor(2)", "Decimal(2)", "Fraction(4, 2)"],
    0.5: ["0.5", "np.float64(0.5)", "np.float16(0.5)", "np.longdouble(0.5)", "np.mean([True, False])"],
    -0.5: ["torch.tensor(-0.5, dtype=torch.bfloat16)", "torch.tensor([-0.5])", "Fraction(-1, 2)", "Decimal('-0.5')"],
}


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A reward worker without Ray, whose reward function is this expression."""
    monkeypatch.setattr("verl.experimental.reward_loop.reward_loop.hf_tokenizer", lambda *_, **__: Letters())

    def make(expression: str, manager: str = "naive", **reward):
        (tmp_path / "reward.py").write_text(f"{REWARDS}score = {expression}\n")
        config = {
            "reward": {
                "custom_reward_function": {"path": f"{tmp_path}/reward.py", "name": "score"},
                "reward_model": {"enable": False},
                "reward_manager": {"source": "register", "name": manager},
                **reward,
            },
            "actor_rollout_ref": {"model": {"path": str(tmp_path), "tokenizer_path": None}},
            "data": {"max_response_length": 4},
            "trainer": {"experiment_name": "tests"},
        }
        asyncio.set_event_loop(asyncio.new_event_loop())
        return RewardLoopWorkerChecked(OmegaConf.create(config))

    return make


class Letters:
    eos_token, eos_token_id = "!", 0

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(i) for i in ids.tolist())


def response(**row):
    """A response as an agent loop hands it over to be scored, of a row with these columns."""
    from verl import DataProto

    columns = {
        "data_source": "me/sums",
        "raw_prompt": [{"role": "user", "content": "What is 2 + 3?"}],
        "extra_info": {"index": 7},
        "reward_model": {"ground_truth": "5"},
        **row,
    }
    tensors = {"responses": torch.tensor([[53, 33, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}
    # As AgentLoopWorker._compute_score has them.
    return DataProto.from_dict(tensors, non_tensors={name: np.array([value]) for name, value in columns.items()})


def scored(worker, data):
    return worker.loop.run_until_complete(worker.compute_score(data))


@pytest.mark.parametrize(("expression", "error"), FAILS.items())
def test_what_is_no_number_is_nan_and_named(worker, tmp_path, capfd, expression, error):
    checked = worker(expression)
    result = scored(checked, response())
    assert math.isnan(result["reward_score"])
    assert result["reward_extra_info"] == {}
    said = (
        f"the reward function score of {tmp_path}/reward.py failed for the row with data_source='me/sums', "
        f"extra_info.index=7, reward_model.ground_truth='5', prompt='What is 2 + 3?': {error}"
    )
    assert checked.first_unscored == said
    printed = capfd.readouterr()
    assert printed.out.splitlines() == [f"gpg_verl: {said}"]
    assert ("Traceback" in printed.err) == ("is no number" not in error)
    scored(checked, response(extra_info={"index": 8}))
    assert checked.first_unscored == said
    assert capfd.readouterr() == ("", "")


def put_into_the_batch(result: dict) -> float:
    """As veRL's agent loop does it: whatever it cannot assign there costs the session."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

    output = AgentLoopOutput(prompt_ids=[1], response_ids=[2, 3], response_mask=[1, 1], metrics=AgentLoopMetrics())
    output.reward_score = result["reward_score"]
    return output.as_dict()["rm_scores"][-1].item()


OVERLONG = {"max_resp_len": 4, "overlong_buffer_cfg": {"enable": True, "len": 3, "penalty_factor": 1.0, "log": True}}


@pytest.mark.parametrize("form", ["give({})", "give({{'score': {}, 'part': {}, 'why': 'so'}})"])
@pytest.mark.parametrize(("manager", "less"), [("naive", 0), ("dapo", 1 / 3), ("gdpo", 0)])
def test_a_number_of_any_type_goes_through(worker, form, manager, less):
    """DAPO's manager subtracts a penalty from it, here for the two tokens of four: a third."""
    for number, value in ((number, value) for value, numbers in NUMBERS.items() for number in numbers):
        checked = worker(form.format(number, number), manager, reward_kwargs=OVERLONG)
        result = scored(checked, response())
        assert checked.first_unscored is None, number
        assert put_into_the_batch(result) == pytest.approx(value - less), number
        extra_info = result["reward_extra_info"]
        assert {type(extra_info[key]) for key in extra_info.keys() & {"acc", "score", "part"}} <= {int, float, bool}
        assert extra_info.get("part", value) == value
        json.dumps(extra_info)


@pytest.mark.parametrize(("expression", "value"), [("a_number", 0.5), ("numpys_number", 0.5)])
def test_so_does_that_of_a_coroutine(worker, expression, value):
    assert put_into_the_batch(scored(worker(expression), response())) == value


class Validated:
    """veRL's validation, from what was collected on."""

    def __init__(self):
        self.named_without_mean = ""

    def _val_metrics_update(self, data_sources, sample_uids, infos, *_):
        from verl.trainer.ppo.metric_utils import process_validation_metrics

        return process_validation_metrics(data_sources, sample_uids, infos)["math"]


class Validation(GuardedRun, Validated):
    __init__ = Validated.__init__


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, None, 0], None),
        ([np.float32(1), True, np.bool_(False)], None),
        (["5", None, "6"], None),  # texts have no mean in veRL either, but votes
        ([{"a": 1}, {"a": 2}, None], "parts (dict)"),
        ([[1, 2], [3], [4]], "parts (list)"),
        ([1.0, "a", 2.0], "parts (number and str)"),
        ([np.ones(2)] * 3, "parts (ndarray)"),
    ],
)
def test_a_key_without_a_mean_is_named_and_left_out_of_means(values, said, capsys):
    run, infos = Validation(), {"reward": [1.0, 0.0, 1.0], "parts": values}
    for _ in range(2):
        metrics = run._val_metrics_update(["math"] * 3, ["a", "a", "a"], infos)
    assert metrics["reward"]["mean@3"] == pytest.approx(2 / 3)
    assert ("parts" in metrics) == (said is None and not isinstance(values[0], str))
    line = f"gpg_verl: the validation's metrics are without these keys of the reward: {said}\n"
    assert capsys.readouterr().out == (line if said else "")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"extra_info": {}}, "data_source='me/sums', reward_model.ground_truth='5', prompt='What is 2 + 3?'"),
        ({"reward_model": {"ground_truth": "5" * 100}}, f"reward_model.ground_truth='{'5' * 58}…, prompt="),
        ({"raw_prompt": [{"role": "user", "content": [{"type": "text", "text": "2?"}]}]}, "prompt=[{'type': 'text'"),
    ],
)
def test_a_row_is_named_by_what_there_is(row, said):
    assert said in rewards.row_of(response(**row))


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ({"custom_reward_function": {"path": "r.py", "name": "f"}}, "the reward function f of r.py"),
        ({"reward_model": {"enable": True, "model_path": "judge"}}, "the reward model judge"),
        ({}, "veRL's reward function (reward manager dapo)"),
    ],
)
def test_what_scores_is_named(reward, said):
    none = {
        "custom_reward_function": {"path": None},
        "reward_model": {"enable": False},
        "reward_manager": {"name": "dapo"},
    }
    assert rewards.scorer_of(OmegaConf.create({"reward": {**none, **reward}})) == said


def test_verls_manager_starts_checked_workers_and_they_answer(tiny_folder, tmp_path):
    """In Ray, as a run does it."""
    import ray
    from exactness import settled
    from verl.experimental.reward_loop import RewardLoopManager

    (tmp_path / "reward.py").write_text(f"{REWARDS}compute_score = give(None)\n")
    config = settled(tiny_folder, f"reward.custom_reward_function.path={tmp_path}/reward.py", "reward.num_workers=1")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    try:
        with rewards_checked():
            manager = RewardLoopManager(config)
        assert first_unscored(manager.reward_loop_workers, 60) is None
        (result,) = ray.get(manager.reward_loop_workers[0].compute_score_batch.remote(response()))
        assert math.isnan(result["reward_score"])
        assert first_unscored(manager.reward_loop_workers, 60).endswith("None is no number")
    finally:
        ray.shutdown()
    assert first_unscored([], 0) is None


class Failing(GuardedRun):
    """A run in which a step ends with an error; its reward workers know of a response without a reward, or of none."""

    def __init__(self, error, known, failed, rows, drop):
        self.error, self.drop_unscored, self.global_steps = error, drop, 0
        self.heartbeat = types.SimpleNamespace(again=lambda seconds: None)
        self.replay_buffer = types.SimpleNamespace(
            failure_keys={"train": failed, "val": ()}, partitions={"train": rows, "val": {}}
        )
        self.reward_loop_manager = types.SimpleNamespace(reward_loop_workers=known)


class Verls:
    def fit(self, agent_loop_manager):
        raise self.error


class Run(Failing, Verls):
    pass


ADVICE = RuntimeError("Enable trainer.v1.sampler.sync_refill_failed_groups to replace failed groups.")
NAN = ValueError("the rewards of 1 of 8 rows are NaN or infinite")


@pytest.mark.parametrize(
    ("error", "known", "failed", "rows", "drop", "said"),
    [
        (ADVICE, [], ("a", "b"), {}, False, "^all of the step's 2 prompts failed in the rollout"),
        (NAN, ["f failed: None"], (), {"c_0_0": {}}, False, r"^f failed: None\. .*\+drop_unscored=True$"),
        (NAN, ["f failed: None"], ("a",), {"c_0_0": {}}, False, "^f failed: None"),  # of another prompt
        (NAN, [], (), {"c_0_0": {}}, False, "NaN or infinite"),
        (NAN, ["f failed: None"], (), {"c_0_0": {}}, True, "NaN or infinite"),  # such rewards are dropped: another's
        (NoReward("none has"), ["f failed: None"], (), {}, True, "^none has; the first: f failed: None$"),
    ],
)
def test_the_cause_has_the_last_word(monkeypatch, error, known, failed, rows, drop, said):
    monkeypatch.setattr(rewards, "first_unscored", lambda workers, _: next(iter(workers), None))
    with pytest.raises(Exception, match=said):
        Run(error, known, failed, rows, drop).fit(None)
