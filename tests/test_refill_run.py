"""The rollout in the real thing: β_th in one run that refills and saves, and one that resumes it; then one of sessions
that fail and one that never ends.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pytest
from launch import launch, read

PROMPTS, BETA_TH, STEPS = 5, 0.6, 3  # 0.6 · 5 groups are 3, though floats say 3.0000000000000004

# The driver notes which prompts it sends to the rollout, and in which step.
NOTE_DISPATCHES = """
import json, os, wrapt

def note(wrapped, trainer, args, kwargs):
    with open(os.environ["DISPATCHES"], "a") as file:
        file.write(json.dumps([trainer.global_steps, [int(i) for i in args[0]["index"]]]) + "\\n")
    return wrapped(*args, **kwargs)

wrapt.register_post_import_hook(
    lambda module: wrapt.wrap_function_wrapper(module, "RefillingStep._submit_batch_to_rollout", note),
    "gpg_verl.training.replay_buffer",
)
"""

# Right where the first letter is one of four: most groups of four responses are all wrong, and steps need refilling.
# For some letters there is no reward, in one way or another.
HARD_REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    if solution_str[:1] in ("x", "y", "z"):
        return {"x": None, "y": float("nan")}[solution_str[:1]]
    right = float(solution_str[:1] in "aeiu")
    return {"score": right, "acc": right}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_folder) -> Path:
    run = tmp_path_factory.mktemp("refill")
    (run / "note_dispatches.py").write_text(NOTE_DISPATCHES)
    (run / "reward.py").write_text(HARD_REWARD)
    for name, last_step in (("first", STEPS), ("second", 2 * STEPS)):
        process = launch(
            run,
            tiny_folder,
            name,
            f"+algorithm.gpg.beta_th={BETA_TH}",
            "+algorithm.gpg.drop_unscored=True",
            f"data.train_batch_size={PROMPTS}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}",
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
            "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.actor.optim.lr=1e-4",
            "data.shuffle=False",
            f"reward.custom_reward_function.path={run}/reward.py",
            f"trainer.total_training_steps={last_step}",
            f"trainer.save_freq={STEPS}",
            f"trainer.rollout_data_dir={run}/rollouts",
            "trainer.val_before_train=False",
            VERL_USE_EXTERNAL_MODULES="note_dispatches",
            PYTHONPATH=os.pathsep.join([str(run), *filter(None, [os.environ.get("PYTHONPATH")])]),
            DISPATCHES=str(run / "dispatches.jsonl"),
        )
        assert process.wait(timeout=400) == 0, (run / f"{name}.log").read_text()[-5000:]
    return run


@pytest.fixture(scope="module")
def steps(runs) -> dict[int, dict]:
    return read(runs / "first.jsonl") | read(runs / "second.jsonl")


@pytest.fixture(scope="module")
def dispatched(runs) -> dict[int, list[int]]:
    """Per step, the data set's rows in the order in which they were sent to the rollout."""
    rows: dict[int, list[int]] = {}
    for line in (runs / "dispatches.jsonl").read_text().splitlines():
        step, indices = json.loads(line)
        rows.setdefault(step, []).extend(indices)
    return rows


def test_first_lines_say_what_beta_th_changes(runs):
    log = (runs / "first.log").read_text()
    before_ray = log[: log.index("Started a local Ray instance")]
    assert "beta_th=0.6" in before_ray
    assert "data.gen_batch_size=1 (β_th asks for single prompts)" in before_ray


def test_every_step_reaches_the_share(steps):
    assert sorted(steps) == list(range(1, 2 * STEPS + 1))
    for m in steps.values():
        flat = m["gpg/all_wrong_groups"] + m["gpg/all_right_groups"] + m["gpg/groups_of_one"]
        assert 1 - flat / PROMPTS >= BETA_TH
        assert m["gpg/groups"] == m["gpg/prompts_used"] == PROMPTS
        assert m["gpg/B"] == 4 * PROMPTS - m["gpg/rows_unscored"]
        assert 0 <= m["critic/score/mean"] <= 1
        assert m["gpg/refill_bound_reached"] == 0
        assert m["actor/grad_norm"] > 0
    assert sum(m["gpg/prompts_refilled"] for m in steps.values()) > 0


def test_responses_without_a_reward_are_left_out_and_the_first_is_named(runs, steps):
    assert sum(m["gpg/rows_unscored"] for m in steps.values()) > 0
    said = f"gpg_verl: the reward function compute_score of {runs}/reward.py failed for the row with data_source="
    assert said in (runs / "first.log").read_text()
    assert not any(math.isnan(value) for m in steps.values() for value in m.values())


def test_counts_add_up(steps, dispatched):
    for step, m in steps.items():
        assert m["gpg/prompts_generated"] == len(dispatched[step]) == PROMPTS + m["gpg/prompts_refilled"]
        assert m["gpg/prompts_judged"] + m["gpg/prompts_handed_back"] == m["gpg/prompts_generated"]


def test_prompts_come_in_the_data_sets_order_through_hand_backs_and_a_resume(steps, dispatched):
    """What a step used up, put end to end, is the data set; what it did not use is where the next step begins."""
    used_up: list[int] = []
    rest: list[int] = []
    for step in sorted(steps):
        assert dispatched[step][: len(rest)] == rest[: len(dispatched[step])]
        judged = int(steps[step]["gpg/prompts_judged"])
        rest = dispatched[step][judged:] + rest[len(dispatched[step]) :]
        used_up += dispatched[step][:judged]
    assert used_up == [i % 64 for i in range(len(used_up))]
    assert steps[STEPS]["gpg/prompts_handed_back"] >= 0


def test_the_trained_groups_are_those_of_the_prefix(runs, steps, dispatched):
    letters = "abcdefghijklmnopqrstuvwxyz"
    for step, m in steps.items():
        prefix = dispatched[step][: int(m["gpg/prompts_judged"])]
        prompts = {letters[i % 26] + letters[i // 26 % 26] for i in prefix}
        rows = [json.loads(line) for line in (runs / f"rollouts/{step}.jsonl").read_text().splitlines()]
        assert {row["input"] for row in rows} <= prompts


# Of the first step's 32 sessions every third raises and one awaits for ever; then all raise.
AGENT_LOOP = """
import asyncio, itertools

from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

number = itertools.count()

class Broken(SingleTurnAgentLoop):
    async def run(self, sampling_params, **kwargs):
        n = next(number)
        if n >= 32 or n % 3 == 0:
            raise ConnectionError(f"the environment of step {1 + n // 32} is gone")
        if n == 1:
            await asyncio.Event().wait()
        return await super().run(sampling_params, **kwargs)
"""


def test_sessions_that_fail_or_never_end(tmp_path, tiny_folder):
    (tmp_path / "broken.py").write_text(AGENT_LOOP)
    (tmp_path / "loops.yaml").write_text("- name: broken\n  _target_: broken.Broken\n")
    agent = "actor_rollout_ref.rollout.agent"
    process = launch(
        tmp_path,
        tiny_folder,
        "sessions",
        f"{agent}.agent_loop_config_path={tmp_path}/loops.yaml",
        f"{agent}.default_agent_loop=broken",
        "+algorithm.gpg.max_failed_share=0.5",
        "+algorithm.gpg.max_session_seconds=20",
        "trainer.total_training_steps=3",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        PYTHONPATH=os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]),
    )
    assert process.wait(timeout=400) == 1
    log = (tmp_path / "sessions.log").read_text()
    (metrics,) = read(tmp_path / "sessions.jsonl").values()
    assert (metrics["gpg/sessions_failed"], metrics["gpg/B"], metrics["gpg/groups_incomplete"]) == (12, 20, 4)
    error = r"ConnectionError: the environment of step {} is gone \(\S+broken.py:12\)"
    said = "gpg_verl: 12 of the step's 32 sessions failed in the rollout, in 4 groups; 11 of them by the first error: "
    assert re.search(re.escape(said) + error.format(1), log)
    assert "max_session_seconds=20, waiting for the agent loop's own code" in log
    last = [line for line in log.splitlines() if line.startswith("gpg_verl: the run has ended: ")][-1]
    assert "SessionsFailed: more than +algorithm.gpg.max_failed_share=0.5 allows" in last
    assert re.search("32 of the step's 32 sessions failed .*" + error.format(2) + "$", last)
