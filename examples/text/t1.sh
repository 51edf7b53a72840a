#!/usr/bin/env bash
# T1: DeepSeek-R1-Distill-Qwen-1.5B; the rows differ in the training data alone.
#
#     bash examples/text/t1.sh gpg_rs1                        # one node of 8 GPUs; data, training, evaluation, report
#     GPUS=4 SEED=2 bash examples/text/t1.sh gpg_rs3          # other settings: the variables
#     bash examples/text/t1.sh gpg_rs1 trainer.save_freq=10   # any veRL setting, as Hydra takes it
#     SMOKE=1 bash examples/text/t1.sh gpg_rs1                # in miniature on a CPU, about 4 minutes
#
# Estimate, not measured: one node of 8 GPUs with 80 GB, 1 to 2 hours of training (8 to 16 H100 hours) and half an hour
# of evaluation. With 40 or 48 GB: MAX_TOKENS=8192. On 4 GPUs twice the time; on one with 80 GB, OFFLOAD=True.
#
# Chosen:
# - 64 prompts a step: the paper's 16 GPUs × 6 rows × 4 accumulations ÷ 6 responses, on any number of GPUs;
# - F_norm=std, α=1: the paper's text says F_norm=1 and α=B/(B−M), its code for these runs divides by the standard
#   deviation and has no α. The numbers came from the code;
# - rewards: format 1 and length-aware accuracy 2, which reward_fns has for these data sources;
# - RS3: the paper's repository has no file for this run. It is RS1's setting on open-rs' third data set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ROWS="gpg_rs1 gpg_rs3"
. examples/rows.sh

# ---- what you may want to change, beside common.sh's -------------------------------------------------------------
MODEL=${MODEL:-deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B}
TEMPLATE=${TEMPLATE:-think-answer} # the paper's own wording: a file, see `python -m gpg_verl.data --help`
PROMPTS=${PROMPTS:-64}             # a step
N=${N:-6}                          # responses to a prompt: the group
LR=${LR:-1e-6}
STEPS=${STEPS:-100}
MAX_PROMPT=${MAX_PROMPT:-512}      # tokens
MAX_RESPONSE=${MAX_RESPONSE:-3584}
K=${K:-1}                          # answers a question in the evaluation; the paper has 1
# ------------------------------------------------------------------------------------------------------------------
case $ROW in
    gpg_rs1) LABEL=GPG-RS1 TRAIN_SET=open-s1 ;;
    gpg_rs3) LABEL=GPG-RS3 TRAIN_SET=open-rs ;;
esac
NAME=${NAME#t1_}
METHOD=gpg F_NORM=std ALPHA=none BETA_TH=
SCHEDULE=cosine MIN_LR_RATIO=0.1 WARMUP=0.1 EPOCHS=2 # the steps end it first
TEMPERATURE=0.7
EVAL_TEMPERATURE=0.6 EVAL_TOP_P=0.95 EVAL_RESPONSE=32768
. examples/common.sh

launch "$@"
