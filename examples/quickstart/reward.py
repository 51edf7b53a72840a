"""The quickstart's reward: 1 if the last number of the answer is the sum, else 0.

Given to veRL as `reward.custom_reward_function.path=examples/quickstart/reward.py`.
"""

import re

# The whole number counts: -11 and 11.5 are not 11. ASCII digits only, as in the question.
NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info=None, **kwargs) -> dict:
    """Score one answer. `pred` is the number that was scored, "" if the answer has none; no text makes this raise."""
    numbers = NUMBER.findall(solution_str)
    pred = numbers[-1] if numbers else ""
    score = float(pred == ground_truth)
    return {"score": score, "acc": score, "pred": pred}
