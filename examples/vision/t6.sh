#!/usr/bin/env bash
# T6: Qwen2-VL-2B-Instruct on four images of each class: Flower102, Pets37, FGVC Aircraft, Cars196, a run for each.
# The rows: common.sh, beside this.
#
#     bash examples/vision/t6.sh gpg flowers             # one node of 8 GPUs; data, training, evaluation, report
#     bash examples/vision/t6.sh grpo flowers            # the row beside it
#     SMOKE=1 bash examples/vision/t6.sh gpg flowers     # in miniature on a CPU, about 4 minutes
#
# Estimate for a run, not measured: 8 GPUs with 80 GB, 1 to 2 hours (8 to 16 H100 hours): 200 to 400 steps, and the
# data set's whole validation set at the end. fp32 weights, gradients and optimizer states take 36 GB over all GPUs:
# one with 80 GB does with OFFLOAD=True. Disk: 27 GB a checkpoint, two while one is written.
#
# The validation sets are on no hub; make SET's by hand, once (the command without --source says where its parts are):
#     python -m gpg_verl.data flowers --split test --template class --out data/vision/class --source LIST --images DIR
#
# Chosen: 16 prompts a step, 1 on each of 8 devices × 2 accumulations.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ROWS="gpg grpo"
DATA_SETS="flowers pets aircraft cars"
. examples/rows.sh

case $SET in
    pets) DEFAULT_EPOCHS=24 ;;
    *) DEFAULT_EPOCHS=8 ;;
esac

# ---- what you may want to change, beside the two common.sh's ------------------------------------------------------
MODEL=${MODEL:-Qwen/Qwen2-VL-2B-Instruct}
TEMPLATE=${TEMPLATE:-class}          # the paper's own wording: a file, see `python -m gpg_verl.data --help`
PROMPTS=${PROMPTS:-16}               # a step
EPOCHS=${EPOCHS:-$DEFAULT_EPOCHS}
MAX_RESPONSE=${MAX_RESPONSE:-256}    # tokens
TEST_EVERY=${TEST_EVERY:-100}        # steps
# ------------------------------------------------------------------------------------------------------------------
TRAIN_SET=$SET VAL_SET=$SET SETS=${SETS:-$SET}
SMOKE_MODEL=${SETS%% *}
. examples/vision/common.sh

launch "$@"
