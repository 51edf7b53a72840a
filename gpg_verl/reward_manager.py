"""veRL's reward manager, with one more thing that a reward function may want to know: whether the answer was cut off.

    reward.reward_manager.source=importlib reward.reward_manager.name=TruncationRewardManager
    reward.reward_manager.module.path=pkg://gpg_verl.reward_manager

Implied where a GPG run names no reward; the recipes name it.
"""

from __future__ import annotations

import numpy as np
from omegaconf import OmegaConf
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager


class TruncationRewardManager(NaiveRewardManager):
    """Puts `truncated` into the row's `extra_info`; veRL's `naive` (0.9.1) hands on the text alone."""

    async def run_single(self, data) -> dict:
        data = data[-1:]  # as veRL's: of a session of several outputs the last is scored
        row = data[0]
        responses, attention = row.batch["responses"], row.batch["attention_mask"]
        length = int(attention[-responses.shape[-1] :].sum())
        last = int(responses[length - 1]) if length else None
        rollout = self.config.actor_rollout_ref.rollout
        cut = is_truncated(
            prompt=int(attention.sum()) - length,
            response=length,
            ended=last == self.tokenizer.eos_token_id,
            response_length=rollout.response_length,
            max_model_len=OmegaConf.select(rollout, "max_model_len"),
        )
        extra_info = {**(row.non_tensor_batch.get("extra_info") or {}), "truncated": cut}
        data.non_tensor_batch["extra_info"] = np.array([extra_info], dtype=object)
        return await super().run_single(data)


def is_truncated(*, prompt: int, response: int, ended: bool, response_length: int, max_model_len: int | None) -> bool:
    """Whether generation ran into a limit: `data.max_response_length`, or `rollout.max_model_len` of prompt and
    response together (None: they have room). Lengths in tokens; `ended`: the last one is the tokenizer's end of
    sequence. A model may end with other tokens of its generation config: at exactly the limit that is taken for a cut.
    """
    full = max_model_len is not None and prompt + response >= max_model_len
    return (response >= response_length or full) and not ended
