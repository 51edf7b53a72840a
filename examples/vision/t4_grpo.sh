#!/usr/bin/env bash
# T4, Qwen2-VL-2B on SAT, measured on CV-Bench.
# GRPO: advantages divided by std, PPO's clipped ratio, a KL term of 0.04.
# Settings, variables and what it takes: t4_common.sh.
#
#     bash examples/vision/t4_grpo.sh              # one node of 8 GPUs; data, training, evaluation, report
#     SMOKE=1 bash examples/vision/t4_grpo.sh      # in miniature on a CPU, about 4 minutes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

CLAIM='{"table": "T4", "row": "+ GRPO"}' # of which row of the paper's tables this is a run
KL=${KL:-0.04}
ALGORITHM_ARGS=(
    algorithm.adv_estimator=grpo
    algorithm.norm_adv_by_std_in_grpo=True
    actor_rollout_ref.actor.use_kl_loss=True
    actor_rollout_ref.actor.kl_loss_coef="$KL"
    actor_rollout_ref.actor.kl_loss_type=low_var_kl
)
. examples/vision/t4_common.sh

launch "$@"
