"""Sessions that fail, that never end, and prompts that are cut. In a real run: test_run.py."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace

import pytest
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopWorker

from gpg_verl.guards.guarded_run import SessionsFailed
from gpg_verl.settings import GPGSettings
from gpg_verl.training import sessions
from gpg_verl.training.sessions import EndedSessions, SessionWatch, error_of, prompt_of


class Worker(AgentLoopWorker):
    """veRL's, with sessions that do as their prompt says."""

    def __init__(self):
        self.llm_client = SimpleNamespace(generate=self.generate)
        self.tools = [SimpleNamespace(name="search", execute=self.tool), SimpleNamespace(name="sum", call=self.tool)]
        self.loop = SimpleNamespace(rollout_config=SimpleNamespace(prompt_length=4))

    async def generate(self, wait=False):
        await asyncio.sleep(60 if wait else 0)

    tool = generate

    async def _compute_score(self, outputs, kwargs):
        await asyncio.sleep(60 if outputs == "wait" else 0)

    async def _run_agent_loop(self, sampling_params, trajectory, *, raw_prompt, **kwargs):
        wait_in = raw_prompt[-1]["content"]
        AgentLoopBase._cap_text_prompt_length(self.loop, [1] * (5 if wait_in == "long" else 4))
        if wait_in == "raise":
            raise ValueError("no\nenvironment")
        await self.llm_client.generate(wait=wait_in == "generate")
        await self.tools[0].execute(wait=wait_in == "execute")
        await self.tools[1].call(wait=wait_in == "call")
        await asyncio.sleep(60 if wait_in == "sleep" else 0)
        await self._compute_score("wait" if wait_in == "score" else "", kwargs={})
        return "done"


@pytest.fixture
def watched(monkeypatch):
    def make(max_seconds=None):
        monkeypatch.setattr(AgentLoopBase, "_cap_text_prompt_length", CAP)
        worker = Worker()
        return worker, SessionWatch(worker, max_seconds)

    yield make
    AgentLoopBase._cap_text_prompt_length = CAP


CAP = AgentLoopBase._cap_text_prompt_length


def row(text: str, uid: str = "a") -> dict:
    return {"uid": uid, "index": 7, "raw_prompt": [{"role": "user", "content": text}]}


def run(worker, *texts: str, validate=False):
    """A group of two sessions for each text, all at once; what they returned or raised."""

    async def all_of_them():
        return await asyncio.gather(
            *(
                worker._run_agent_loop({}, {"validate": validate}, session_id=i, **row(text, f"u{g}"))
                for g, text in enumerate(texts)
                for i in range(2)
            ),
            return_exceptions=True,
        )

    return asyncio.run(all_of_them())


def test_sessions_that_fail_are_counted_with_their_error(watched):
    worker, watch = watched()
    results = run(worker, "fine", "raise", "long", "raise")
    assert [str(result) for result in results] == [*["done"] * 2, *["no\nenvironment"] * 2] * 2
    ended = watch.take()
    assert (ended.count, ended.truncated) == (8, {"u2"})
    assert [uid for uid, _ in ended.failures] == ["u1", "u1", "u3", "u3"]
    assert {error.partition(" (")[0] for _, error in ended.failures} == {"ValueError: no environment"}
    assert ended.metrics() == {"gpg/sessions_failed": 4, "gpg/groups_incomplete": 2, "gpg/prompts_truncated": 1}
    assert (watch.take(), watch.running, len(watch.finished)) == (EndedSessions(), {}, 4)


def test_validation_does_not_count(watched):
    worker, watch = watched()
    run(worker, "raise", "long", validate=True)
    assert watch.take() == EndedSessions()


STAGES = {
    "generate": "generation",
    "execute": "the tool search",
    "call": "the tool sum",
    "score": "the reward",
    "sleep": "the agent loop's own code",
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_session_is_ended_after_its_time_as_one_that_failed(watched, stage):
    worker, watch = watched(max_seconds=0.2)
    assert [type(result) for result in run(worker, stage, "fine")] == [TimeoutError, TimeoutError, str, str]
    ended = watch.take()
    assert (
        ended.failures
        == [("u0", f"not ended after algorithm.gpg.max_session_seconds=0.2, waiting for {STAGES[stage]}")] * 2
    )
    assert ended.count == 4


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("finished", "limit", "known"),
    [
        ([], 600, "none has finished yet"),
        ([1.0, 2.0, 300.0], 120, "the median of the finished is 2 s"),
        ([20.0, 30.0, 40.0], 300, "the median of the finished is 30 s"),
    ],
)
def test_a_session_that_does_not_end_is_named_once(watched, stage, finished, limit, known):
    worker, watch = watched()

    async def look():
        tasks = [
            asyncio.create_task(worker._run_agent_loop({}, {"validate": False}, session_id=i, **row(stage)))
            for i in range(3)
        ]
        await asyncio.sleep(0.1)
        watch.finished.extend(finished)
        began = max(session.began for session in watch.running.values())
        lines = [watch.overdue(began + seconds) for seconds in (limit - 1, limit + 1, limit + 100)]
        for task in tasks:
            task.cancel()
        return lines

    early, line, later = asyncio.run(look())
    assert (early, later) == (None, None)
    said = f"session 0 of the prompt {stage!r} (index 7, uid a) has run for {limit + 1} s, as 2 others have ({known})"
    assert said in line
    assert f"waits for {STAGES[stage]}. +algorithm.gpg.max_session_seconds=N" in line


def test_the_line_is_printed_while_the_worker_is_held_up(monkeypatch, capsys):
    watch = object.__new__(SessionWatch)
    looks = iter(["a line", None])
    monkeypatch.setattr(sessions, "LOOK_SECONDS", 0.0)
    watch.overdue = lambda now: next(looks)
    with pytest.raises(StopIteration):
        watch._look()
    assert capsys.readouterr().out == "a line\n"


def step(failed: int, ended: int) -> EndedSessions:
    return EndedSessions(ended, [(f"u{i // 2}", "A" if i else "B") for i in range(failed)])


@pytest.mark.parametrize(
    ("failed", "ended", "share", "ends"),
    [
        (0, 32, 0.0, False),
        (1, 32, 0.0, False),  # one never ends a run
        (2, 32, 0.0, True),
        (3, 32, 0.1, False),
        (4, 32, 0.1, True),
        (4, 8, 0.1, True),  # a local update's, of a step of 32
        (3, 8, 0.1, False),
        (4, 64, 0.1, False),  # refilled
        (32, 32, 1.0, False),
    ],
)
def test_too_many_failures_end_the_run(failed, ended, share, ends):
    if not ends:
        step(failed, ended).end_if_too_many(32, share)
        return
    said = rf"max_failed_share={share:g} allows .*{failed} of the step's {max(32, ended)} sessions .* in 2 groups; 1 of"
    with pytest.raises(SessionsFailed, match=said if failed > 2 else "max_failed_share") as error:
        step(failed, ended).end_if_too_many(32, share)
    assert str(error.value).endswith("by the first error: B")


class Verls:
    """veRL's trainer, whose step raises where `error` says so."""

    def __init__(self, config, error=None):
        self.config, self.error = config, error

    def step(self, metrics, timing_raw):
        self.on_sample_end()
        return "batch"

    def fit(self, agent_loop_manager):
        if self.error:
            raise self.error
        self.metrics = {}
        self.step(self.metrics, {})

    def on_sample_end(self):
        pass


@pytest.mark.parametrize("error", [None, RuntimeError("no row")])
@pytest.mark.parametrize(("share", "ends"), [(0.1, True), (0.125, False)])
def test_the_trainer_judges_each_step_and_what_stands_behind_its_errors(monkeypatch, capsys, error, share, ends):
    class Trainer(sessions.WatchedSessions, Verls):
        settings = GPGSettings(max_failed_share=share)

    def asked(question, *arguments):
        return step(2, 8) if question is sessions._take else None

    monkeypatch.setattr(sessions, "ray", SimpleNamespace(get=list))
    worker = SimpleNamespace(__ray_call__=SimpleNamespace(remote=asked))
    config = SimpleNamespace(
        data=SimpleNamespace(train_batch_size=4), actor_rollout_ref=SimpleNamespace(rollout=SimpleNamespace(n=8))
    )
    trainer = Trainer(config)
    trainer.error = error
    manager = SimpleNamespace(agent_loop_workers=[worker, worker])
    if ends or error:
        with pytest.raises(SessionsFailed if ends else RuntimeError, match="4 of the step's 32" if ends else "no row"):
            trainer.fit(manager)
        return
    trainer.fit(manager)
    assert trainer.metrics["gpg/sessions_failed"] == 4
    assert capsys.readouterr().out.startswith(
        "gpg_verl: 4 of the step's 32 sessions failed in the rollout, in 1 groups"
    )
    assert trainer.sessions == EndedSessions()


def test_reports_of_workers_add_up():
    total = EndedSessions()
    for part in (step(2, 4), EndedSessions(3, [], {"x"}), EndedSessions(1, [("y", "A")], {"x", "y"})):
        total.add(part)
    assert (total.count, len(total.failures), total.truncated) == (8, 3, {"x", "y"})
    assert "2 groups" in total.summary(8)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([{"content": "one"}, {"content": "two\n lines"}], "'two lines' (index 3, uid u)"),
        (["text"], "'text' (index 3, uid u)"),
        ([], "'' (index 3, uid u)"),
        (["x" * 1000], f"'{'x' * 299}…' (index 3, uid u)"),
    ],
)
def test_a_prompt_by_its_last_message(prompt, said):
    assert prompt_of({"raw_prompt": prompt, "index": 3, "uid": "u"}) == said


def test_an_error_by_its_place():
    with pytest.raises(ValueError, match="math") as error:
        math.sqrt(-1)
    assert error_of(error.value).endswith(f"({__file__}:{error.tb.tb_lineno})")
