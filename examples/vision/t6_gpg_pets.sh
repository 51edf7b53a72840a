#!/usr/bin/env bash
# T6, Pets37: Qwen2-VL-2B-Instruct on four images of each class.
# GPG: F_norm=1, α=B/(B−M), refilled below a valid share of β_th=0.4.
# Settings, variables and what it takes: t6_common.sh.
#
#     bash examples/vision/t6_gpg_pets.sh              # one node of 8 GPUs; data, training, evaluation, report
#     SMOKE=1 bash examples/vision/t6_gpg_pets.sh      # in miniature on a CPU, about 4 minutes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

CLAIM='{"table": "T6", "row": "+ GPG"}' # of which row of the paper's tables this is a run
SET=pets
EPOCHS=${EPOCHS:-24}
BETA_TH=${BETA_TH:-0.4}
ALGORITHM_ARGS=(
    algorithm.adv_estimator=gpg
    +algorithm.gpg.f_norm=1
    +algorithm.gpg.alpha=sample
    +algorithm.gpg.beta_th="$BETA_TH"
)
. examples/vision/t6_common.sh

launch "$@"
