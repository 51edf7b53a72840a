"""What a mixin of ours derives from, for a type checker: the class of veRL's whose methods it replaces and calls.

When it runs it derives from nothing: it is mixed in before veRL's class. tests/test_compat.py holds it against veRL.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer as TrainerMixin
    from verl.workers.engine_workers import ActorRolloutRefWorker as ActorMixin
else:
    TrainerMixin = ActorMixin = object
