"""Asked to leave, a run ends its step, saves it, and ends with exit code 75."""

from __future__ import annotations

import math

import pytest
from omegaconf import OmegaConf

from gpg_verl.guards.guarded_run import GuardedRun
from gpg_verl.guards.preemption import SLACK_SECONDS, Leave, Preempted, grace_seconds


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def leave_after(step_seconds, save_seconds, elapsed, until):
    """In the middle of a step, `elapsed` seconds after its begin and asked to be gone in `until` seconds."""
    clock, answers = Clock(), []
    leave = Leave(asked=lambda: answers[-1] if answers else None, clock=clock)
    assert not leave.between_steps()
    clock.now += step_seconds
    assert not leave.between_steps()
    leave.save_seconds = save_seconds
    clock.now += elapsed
    if until is not None:
        answers.append(clock.now + until)
    return leave


@pytest.mark.parametrize(
    ("step_seconds", "save_seconds", "elapsed", "until", "goes_on"),
    [
        (60, 10, 20, None, True),  # not asked
        (60, 10, 20, math.inf, True),  # asked without a word on the time
        (60, 10, 20, 40 + 10 + SLACK_SECONDS, True),
        (60, 10, 20, 40 + 10 + SLACK_SECONDS - 1, False),
        (60, 10, 90, 10 + SLACK_SECONDS, True),  # longer than the last one already: any moment now
        (60, 10, 90, 9 + SLACK_SECONDS, False),
    ],
)
def test_a_step_goes_on_while_it_can_end_in_time(step_seconds, save_seconds, elapsed, until, goes_on):
    leave = leave_after(step_seconds, save_seconds, elapsed, until)
    if goes_on:
        leave.while_waiting()
    else:
        with pytest.raises(Preempted, match=f"asked to leave within {until:.0f} s"):
            leave.while_waiting()
    assert leave.between_steps() == (until is not None)


def test_the_validation_before_training_is_no_step():
    leave = Leave(asked=lambda: 0.0)
    leave.while_waiting()
    assert leave.between_steps()


class Trainer:
    """What a guarded run asks of veRL's."""

    def __init__(self, config):
        self.config = config
        self.global_steps = 0
        self.begun, self.saved = [], []

    def on_step_begin(self):
        self.begun.append(self.global_steps)

    def _save_checkpoint(self):
        self.saved.append(self.global_steps)


@pytest.mark.parametrize(
    ("save_freq", "asked_in", "saved"),
    [(5, 3, [3]), (5, 5, [5]), (5, 6, [5, 6]), (1, 2, [1, 2]), (-1, 3, []), (5, 0, [])],
)
def test_the_step_that_is_done_is_saved_once(tmp_path, save_freq, asked_in, saved):
    class Run(GuardedRun, Trainer):
        pass

    run = Run(OmegaConf.create({"actor_rollout_ref": {}, "trainer": {
        "default_local_dir": str(tmp_path), "max_actor_ckpt_to_keep": None, "save_freq": save_freq,
    }}))  # fmt: skip
    asked = []
    run.leave = Leave(asked=lambda: asked[-1] if asked else None)
    if asked_in == 0:
        asked.append(math.inf)

    def fit():  # as veRL's
        for step in range(1, 20):
            run.global_steps = step
            run.on_step_begin()
            if step == asked_in:
                asked.append(math.inf)
            if save_freq > 0 and step % save_freq == 0:
                run._save_checkpoint()

    with pytest.raises(Preempted, match=f"asked to leave, after step {asked_in}$"):
        fit()
    assert run.begun == list(range(1, asked_in + 1))
    assert run.saved == saved


@pytest.mark.parametrize(("text", "seconds"), [("", None), ("300", 300.0), ("0.5", 0.5)])
def test_the_grace(monkeypatch, text, seconds):
    monkeypatch.setenv("GPG_GRACE", text)
    assert grace_seconds() == seconds


@pytest.mark.parametrize("text", ["5m", "-1", "0", "inf", "nan"])
def test_a_grace_that_is_no_time(monkeypatch, text):
    monkeypatch.setenv("GPG_GRACE", text)
    with pytest.raises(ValueError, match=f"GPG_GRACE={text}: expected seconds"):
        grace_seconds()
