"""The rewards as veRL loads and calls them: by path, as a package, in its reward manager, in Ray workers."""

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BY_PATH = str(ROOT / "reward_fns" / "__init__.py")


@pytest.mark.parametrize("path", [BY_PATH, f"file://{BY_PATH}", "pkg://reward_fns"])
def test_verl_loads_it(path):
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import get_custom_reward_fn

    function = {"path": path, "name": "compute_score", "reward_kwargs": {"format": 1, "format_style": "think_line"}}
    score = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": function}}))
    result = score(
        data_source="lighteval/MATH", solution_str="a\n</think>\n\\boxed{5}", ground_truth="x=5", extra_info={}
    )
    assert result["score"] == 2.0


def test_by_path_from_another_folder_without_an_installation(tmp_path):
    """-S and an empty folder: no site-packages, so no installed copy of this package."""
    program = f"""
        import importlib.util
        spec = importlib.util.spec_from_file_location("custom_module", {BY_PATH!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.compute_score("openai/gsm8k", "#### 5", "5")["score"] == 1.0
        import reward_fns
        assert reward_fns.__file__ == {BY_PATH!r}
    """
    subprocess.run([sys.executable, "-S", "-c", textwrap.dedent(program)], cwd=tmp_path, check=True, timeout=60, env={})


@pytest.fixture(scope="module")
def manager():
    """The manager that a run loads, with a tokenizer of characters and responses of up to WIDTH of them."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import load_reward_manager

    class Letters:
        eos_token_id = 0

        def decode(self, ids, skip_special_tokens):
            return "".join(chr(i) for i in ids.tolist() if i)

    config = {
        "reward": {
            "custom_reward_function": {"path": "pkg://reward_fns", "name": "compute_score"},
            "reward_manager": {
                "source": "importlib",
                "name": "TruncationRewardManager",
                "module": {"path": "pkg://gpg_verl.reward_manager"},
            },
        },
        "actor_rollout_ref": {"rollout": {"response_length": WIDTH, "max_model_len": None}},
    }
    return lambda: load_reward_manager(OmegaConf.create(config), Letters())


WIDTH = 20


def row_of(text: str):
    """A response of these characters, end-of-sequence included, right of a prompt of three."""
    import numpy as np
    import torch
    from verl import DataProto

    ids = [ord(c) for c in text]
    return DataProto.from_dict(
        {
            "responses": torch.tensor([ids + [0] * (WIDTH - len(ids))]),
            "attention_mask": torch.tensor([[0, 1, 1, 1] + [1] * len(ids) + [0] * (WIDTH - len(ids))]),
        },
        non_tensors={
            "data_source": np.array(["lighteval/MATH"], dtype=object),
            "reward_model": np.array([{"ground_truth": "x=5"}], dtype=object),
            "extra_info": np.array([{"index": 0}], dtype=object),
        },
    )


def scored(manager, texts: list[str]) -> list[dict]:
    async def run():
        scorer = manager()
        return await asyncio.gather(*[scorer.run_single(row_of(text)) for text in texts])

    return asyncio.run(run())


def test_a_response_as_long_as_allowed_was_cut_unless_it_ends_there(manager):
    long = "x is \\boxed{5}".ljust(WIDTH - 1)
    results = scored(manager, ["\\boxed{5}", "\\boxed{5", long, long + " ", long + "\0"])
    assert [r["reward_extra_info"]["truncated"] for r in results] == [0.0, 0.0, 0.0, 1.0, 0.0]
    assert [r["reward_score"] for r in results] == [1.0, 0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("prompt", "response", "ended", "max_model_len", "truncated"),
    [
        (8, 15, False, None, False),
        (8, 16, False, None, True),
        (8, 16, True, None, False),
        (8, 12, False, 20, True),  # the context is full before the response's own limit
        (8, 12, True, 20, False),
        (7, 12, False, 20, False),
    ],
)
def test_limits_of_a_response(prompt, response, ended, max_model_len, truncated):
    from gpg_verl.reward_manager import is_truncated

    assert truncated == is_truncated(
        prompt=prompt, response=response, ended=ended, response_length=16, max_model_len=max_model_len
    )


def test_verls_reward_manager_scores_a_batch_with_a_hanging_answer(manager, monkeypatch):
    monkeypatch.setenv("GPG_VERIFY_TIMEOUT", "0.5")
    texts = ["\\boxed{5}", "\\boxed{4}", "\\boxed{9^{9^{9^9}}}", "", "so x=5 \\boxed{5.0}"]
    results = scored(manager, texts)
    assert [r["reward_score"] for r in results] == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert [r["reward_extra_info"]["killed"] for r in results] == [0.0, 0.0, 1.0, 0.0, 0.0]
    # veRL makes one array of each key.
    assert len({tuple(r["reward_extra_info"]) for r in results}) == 1


def test_in_ray_workers_that_are_killed():
    """Two actors on one node, one hanging in an answer: both score, and no process outlives them."""
    program = """
        import os, sys, time
        import psutil, ray
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, logging_level="error")

        @ray.remote(max_concurrency=4)
        class Scorer:
            def score(self, text, timeout=20):
                from reward_fns import compute_score, guard
                result = compute_score("lighteval/MATH", text, "5+x", verify_timeout=timeout)
                return result["acc"], guard.pool().processes()

        scorers = [Scorer.remote() for _ in range(2)]
        pids = set()
        for right, processes in ray.get([s.score.remote("\\\\boxed{x+5}") for s in scorers], timeout=60):
            assert right == 1
            pids |= set(processes)
        assert len(pids) == 4, pids
        scorers[0].score.remote("\\\\boxed{9^{9^{9^9}}}", 60)
        time.sleep(0.3)
        for scorer in scorers:
            ray.kill(scorer)
        deadline = time.time() + 10
        while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            assert time.time() < deadline, "left behind"
            time.sleep(0.1)
        print("all gone")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "all gone" in done.stdout
