#!/usr/bin/env bash
# T7: Qwen2.5-VL-3B-Instruct on GEOQA_R1V_Train_8K; GEOQA's 754 test questions.
# The rows: common.sh, beside this.
#
#     bash examples/vision/t7.sh gpg             # one node of 8 GPUs; data, training, evaluation, report
#     bash examples/vision/t7.sh grpo            # the row beside it
#     SMOKE=1 bash examples/vision/t7.sh gpg     # in miniature on a CPU, about 4 minutes
#
# Estimate, not measured: 8 GPUs with 80 GB, 2 to 3 hours (16 to 24 H100 hours), refilling included: 500 steps. fp32
# weights, gradients and optimizer states take 60 GB over all GPUs: one with 80 GB does with OFFLOAD=True.
# Disk: 45 GB a checkpoint, two while one is written.
#
# The test set is on no hub; make it by hand, once (the command without --source says where its parts are):
#     python -m gpg_verl.data geoqa --split test --template number --out data/vision/number --source LIST --images DIR
#
# Chosen: 16 prompts a step, 1 on each of 8 devices × 2 accumulations.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ROWS="gpg grpo"
. examples/rows.sh

# ---- what you may want to change, beside the two common.sh's ------------------------------------------------------
MODEL=${MODEL:-Qwen/Qwen2.5-VL-3B-Instruct}
TEMPLATE=${TEMPLATE:-number}         # the paper's own wording: a file, see `python -m gpg_verl.data --help`
PROMPTS=${PROMPTS:-16}               # a step
EPOCHS=${EPOCHS:-1}
MAX_RESPONSE=${MAX_RESPONSE:-256}    # tokens
TEST_EVERY=${TEST_EVERY:-50}         # steps
# ------------------------------------------------------------------------------------------------------------------
TRAIN_SET=geoqa VAL_SET=geoqa SETS=geoqa
SMOKE_MODEL=t7
. examples/vision/common.sh

launch "$@"
