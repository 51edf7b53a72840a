#!/usr/bin/env bash
# T4: Qwen2-VL-2B, the base model, on SAT's 15,000 questions; CV-Bench.
# The rows: common.sh, beside this.
#
#     bash examples/vision/t4.sh gpg             # one node of 8 GPUs; data, training, evaluation, report
#     bash examples/vision/t4.sh grpo            # the row beside it
#     SMOKE=1 bash examples/vision/t4.sh gpg     # in miniature on a CPU, about 4 minutes
#
# Estimate, not measured: 8 GPUs with 80 GB, 10 to 16 hours (80 to 130 H100 hours), refilling included: 3,750 steps, of
# few prompts each. fp32 weights, gradients and optimizer states take 36 GB over all GPUs: one with 80 GB does with
# OFFLOAD=True. Disk: 27 GB a checkpoint, two while one is written.
#
# Chosen: 8 prompts a step, 1 on each of 8 devices; the paper does not say how many it had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ROWS="gpg grpo"
. examples/rows.sh

# ---- what you may want to change, beside the two common.sh's ------------------------------------------------------
MODEL=${MODEL:-Qwen/Qwen2-VL-2B}
TEMPLATE=${TEMPLATE:-choice}         # the paper's own wording: a file, see `python -m gpg_verl.data --help`
PROMPTS=${PROMPTS:-8}                # a step
EPOCHS=${EPOCHS:-2}
MAX_RESPONSE=${MAX_RESPONSE:-700}    # tokens
SAVE_EVERY=${SAVE_EVERY:-200}        # steps
TEST_EVERY=${TEST_EVERY:-200}
# ------------------------------------------------------------------------------------------------------------------
TRAIN_SET=sat VAL_SET=cv_bench SETS=cv_bench
PLAIN=1 # a base model: TEMPLATE is the whole prompt, and ends with the opening think tag
SMOKE_MODEL=t4
. examples/vision/common.sh

launch "$@"
