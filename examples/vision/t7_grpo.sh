#!/usr/bin/env bash
# T7, Qwen2.5-VL-3B-Instruct on GEOQA.
# GRPO: advantages divided by std, PPO's clipped ratio, a KL term of 0.04.
# Settings, variables and what it takes: t7_common.sh.
#
#     bash examples/vision/t7_grpo.sh              # one node of 8 GPUs; data, training, evaluation, report
#     SMOKE=1 bash examples/vision/t7_grpo.sh      # in miniature on a CPU, about 4 minutes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

CLAIM='{"table": "T7", "row": "+ GRPO"}' # of which row of the paper's tables this is a run
KL=${KL:-0.04}
ALGORITHM_ARGS=(
    algorithm.adv_estimator=grpo
    algorithm.norm_adv_by_std_in_grpo=True
    actor_rollout_ref.actor.use_kl_loss=True
    actor_rollout_ref.actor.kl_loss_coef="$KL"
    actor_rollout_ref.actor.kl_loss_type=low_var_kl
)
. examples/vision/t7_common.sh

launch "$@"
