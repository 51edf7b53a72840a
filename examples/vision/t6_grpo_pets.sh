#!/usr/bin/env bash
# T6, Pets37: Qwen2-VL-2B-Instruct on four images of each class.
# GRPO: advantages divided by std, PPO's clipped ratio, a KL term of 0.04.
# Settings, variables and what it takes: t6_common.sh.
#
#     bash examples/vision/t6_grpo_pets.sh              # one node of 8 GPUs; data, training, evaluation, report
#     SMOKE=1 bash examples/vision/t6_grpo_pets.sh      # in miniature on a CPU, about 4 minutes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

CLAIM='{"table": "T6", "row": "+ GRPO"}' # of which row of the paper's tables this is a run
SET=pets
EPOCHS=${EPOCHS:-24}
KL=${KL:-0.04}
ALGORITHM_ARGS=(
    algorithm.adv_estimator=grpo
    algorithm.norm_adv_by_std_in_grpo=True
    actor_rollout_ref.actor.use_kl_loss=True
    actor_rollout_ref.actor.kl_loss_coef="$KL"
    actor_rollout_ref.actor.kl_loss_type=low_var_kl
)
. examples/vision/t6_common.sh

launch "$@"
