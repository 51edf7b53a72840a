#!/usr/bin/env bash
# T5: Qwen2-VL-2B-Instruct on the 239 images of LISA's ReasonSeg; boxes.
# The rows: common.sh, beside this.
#
#     SOURCES=folder bash examples/vision/t5.sh gpg      # one node of 8 GPUs; data, training, evaluation, report
#     SOURCES=folder bash examples/vision/t5.sh grpo     # the row beside it
#     SMOKE=1 bash examples/vision/t5.sh gpg             # in miniature on a CPU, about 4 minutes
#
# LISA's training data is on no hub: SOURCES names a folder that holds LISA's folder ReasonSeg under the name `lisa`
# (with train, val and test in it, a .jpg and a .json for each image). A training image has several wordings of its
# instruction, and each is a question.
#
# Estimate, not measured: 8 GPUs with 80 GB, 1 to 2 hours (8 to 16 H100 hours), and a quarter of an hour for SAM. fp32
# weights, gradients and optimizer states take 36 GB over all GPUs: one with 80 GB does with OFFLOAD=True.
# Disk: 27 GB a checkpoint, two while one is written.
#
# Chosen: 16 prompts a step, 1 on each of 8 devices × 2 accumulations. Visual-RFT's README evaluates checkpoint 498,
# which is 6 epochs of 83 such steps: of 1,313 to 1,328 questions, so of wordings and not of images.
# Two of the table's three columns, mIoU, are IoUs of boxes in the code that they come from, and one, gIoU, of masks:
# gpg_verl/report/masks.py has the evidence. We measure all of them, for val and test, and label each by what it compares.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ROWS="gpg grpo"
. examples/rows.sh

# ---- what you may want to change, beside the two common.sh's ------------------------------------------------------
MODEL=${MODEL:-Qwen/Qwen2-VL-2B-Instruct}
TEMPLATE=${TEMPLATE:-box}            # the paper's own wording: a file, see `python -m gpg_verl.data --help`
PROMPTS=${PROMPTS:-16}               # a step
EPOCHS=${EPOCHS:-6}
MAX_RESPONSE=${MAX_RESPONSE:-256}    # tokens
SAM=${SAM:-facebook/sam-vit-huge}    # makes masks of boxes in the evaluation
# ------------------------------------------------------------------------------------------------------------------
TRAIN_SET=lisa VAL_SET=lisa:val SETS="lisa:val lisa:test"
SMOKE_MODEL=t5
. examples/vision/common.sh

launch "$@"
