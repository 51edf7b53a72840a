"""One run of the real thing: veRL with vLLM on a CPU, a step filled under β_th = 1 against DAPO's filtering.

    python examples/benchmark/refill_run.py --steps 8

Both run GPG's trainer on a tiny random model, whose responses end by chance (about 30 tokens, at most 200),
with a reward that makes about a third of the groups of 4 valid, and with a learning rate of 0, so that this share
stays. DAPO is veRL 0.9.1's `algorithm.filter_groups` in its sync replay buffer, looking at the rollout as often as we
do. Prints seconds to a full batch and prompts generated per prompt used, step 1 left out (it warms up the engine).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny

REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    right = float(solution_str[:1] in "aei")
    return {"score": right, "acc": right}
"""
CONTENDERS = {
    "gpg_verl": ["+algorithm.gpg.beta_th=1"],
    "DAPO": ["algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=reward"],
}


def run(folder: Path, name: str, prompts: int, steps: int) -> list[dict]:
    """The metrics of each step."""
    file = folder / f"{name}.jsonl"
    command = [
        sys.executable, "-m", "verl.trainer.main_ppo", *tiny.overrides(folder, prompts=prompts, n=4, response=200),
        f"reward.custom_reward_function.path={folder}/hard.py", "actor_rollout_ref.actor.optim.lr=0",
        "trainer.val_before_train=False", "trainer.logger=[file]", f"trainer.total_training_steps={steps}",
        f"trainer.default_local_dir={folder}/{name}", *CONTENDERS[name],
    ]  # fmt: skip
    with (folder / f"{name}.log").open("w") as log:
        subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"VERL_FILE_LOGGER_PATH": str(file)},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    return [json.loads(line)["data"] for line in file.read_text().splitlines()]


def generated(metrics: dict, prompts: int) -> float:
    """Prompts sent to the rollout per prompt used."""
    thrown = sum(
        metrics.get(f"training/filter_groups/{kind}_samples", 0) for kind in ("evicted", "discarded_surplus")
    )  # DAPO's
    return metrics.get("gpg/prompts_generated_sum", prompts + thrown) / prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = tiny.make(Path(temporary), rows=1024)
        (folder / "hard.py").write_text(REWARD)
        seconds = {}
        for name in CONTENDERS:
            steps = run(folder, name, args.prompts, args.steps)[1:]
            seconds[name] = statistics.fmean(m["timing_s/gen"] for m in steps)
            made = statistics.fmean(generated(m, args.prompts) for m in steps)
            print(f"{name:10} {seconds[name]:6.2f} s to a full batch, {made:5.2f} prompts generated per prompt used")
        print(f"ours is {seconds['DAPO'] / seconds['gpg_verl']:.2f} times faster")


if __name__ == "__main__":
    main()
