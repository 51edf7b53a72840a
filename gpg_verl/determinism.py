"""`actor_rollout_ref.rollout.full_determinism=True` for group methods: every response has a seed of its own.

veRL 0.9.1 gives every request the one seed `rollout.seed` then, so the n responses to a prompt are the same, no group
is mixed, and GPG (like GRPO) has no gradient; and one name, `det-0`, by which its load balancer sends them all to one
replica. Here seed and name come from the step, the prompt's place in it and the response's number. They do not depend
on time, so a run that was resumed samples what it would have sampled undisturbed.
"""

from __future__ import annotations

import numpy as np
import ray
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils import tensordict_utils as tu

PLACE = "gpg_place"


def seed_of(seed: int, step: int, validate: bool, place: int, session: int) -> int:
    """A seed for one response, below 2^63 as vLLM and torch take it."""
    (word,) = np.random.SeedSequence([seed, step, int(validate), place, session]).generate_state(1, np.uint64)
    return int(word >> np.uint64(1))


def priority_of(step: int, validate: bool, place: int, session: int) -> int:
    """veRL names a request after its priority and routes it by that: one number each, in the order of dispatch."""
    return (2 * step + int(validate)) << 42 | place << 16 | session


class AgentLoopWorkerSeeded(AgentLoopWorkerTQ.__ray_actor_class__):  # type: ignore[name-defined]
    """All requests of a session of several turns have its seed."""

    def __init__(self, *args, **kwargs):
        # Ray ships an inherited __init__ by value, with a copy of the class that its super() means.
        super().__init__(*args, **kwargs)

    async def _run_agent_loop(self, sampling_params, trajectory, **kwargs):
        which = (int(trajectory["step"]), bool(trajectory["validate"]), kwargs.pop(PLACE), kwargs["session_id"])
        seed = seed_of(self.config.actor_rollout_ref.rollout.seed, *which)
        kwargs["priority"] = priority_of(*which)
        return await super()._run_agent_loop({**sampling_params, "seed": seed}, trajectory, **kwargs)


class AgentLoopManagerSeeded(AgentLoopManagerTQ):
    """Numbers the prompts of a step in the order in which they are sent to the rollout."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(AgentLoopWorkerSeeded)
        self.sent: dict[bool, tuple[int, int]] = {}  # training and validation: (step, prompts sent in it)

    def generate_sequences(self, prompts):
        validate = bool(prompts["validate"]) if "validate" in prompts else False
        step = int(prompts["global_steps"])
        last_step, sent = self.sent.get(validate, (step, 0))
        first = sent if last_step == step else 0
        self.sent[validate] = (step, first + len(prompts))
        tu.assign_non_tensor_stack(prompts, PLACE, list(range(first, first + len(prompts))))
        super().generate_sequences(prompts)
