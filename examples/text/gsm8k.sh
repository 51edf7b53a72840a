#!/usr/bin/env bash
# GPG on GSM8K with Qwen2.5-0.5B or 1.5B-Instruct, on one GPU with 24 GB: not a run of the paper, but its method, and the
# affordable first run.
#
#     bash examples/text/gsm8k.sh 0.5b                        # data, training, evaluation, report
#     EPOCHS=1 SEED=2 bash examples/text/gsm8k.sh 0.5b        # other settings: the variables
#     bash examples/text/gsm8k.sh 1.5b trainer.save_freq=10   # any veRL setting, as Hydra takes it
#     SMOKE=1 bash examples/text/gsm8k.sh 0.5b                # in miniature on a CPU, about 3 minutes
#
# Estimate, not measured, on an RTX 4090: 0.5b 2 to 3 hours; 1.5b 5 to 7 hours, and 40 GB of main memory.
#
# Chosen: F_norm=1 and α=B/(B−M), the paper's, without refilling; 64 prompts a step; evaluation greedy, on GSM8K's own
# 1,319 test questions, which also are the held-out ones while training.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ROWS="0.5b 1.5b"
. examples/rows.sh

case $ROW in # the larger one's fp32 weights, gradients and optimizer states take 25 GB
    0.5b) MODEL=${MODEL:-Qwen/Qwen2.5-0.5B-Instruct} ;;
    1.5b) MODEL=${MODEL:-Qwen/Qwen2.5-1.5B-Instruct} CPU_UPDATE=${CPU_UPDATE:-True} ;;
esac

# ---- what you may want to change, beside common.sh's -------------------------------------------------------------
TEMPLATE=${TEMPLATE:-boxed}
PROMPTS=${PROMPTS:-64}         # a step
N=${N:-8}                      # responses to a prompt: the group
LR=${LR:-1e-6}
EPOCHS=${EPOCHS:-2}
STEPS=${STEPS:-}               # instead of EPOCHS
MAX_PROMPT=${MAX_PROMPT:-512}  # tokens
MAX_RESPONSE=${MAX_RESPONSE:-512}
GPUS=${GPUS:-1}
MAX_TOKENS=${MAX_TOKENS:-4096} # of a micro-batch: the logits of 4,096 tokens take 2.5 GB in fp32
GPU_MEMORY=${GPU_MEMORY:-0.5}
# ------------------------------------------------------------------------------------------------------------------
LABEL="GSM8K, Qwen2.5-${ROW^^}-Instruct"
METHOD=gpg F_NORM=1 ALPHA=sample BETA_TH=
SCHEDULE=constant MIN_LR_RATIO=0 WARMUP=0.03
TEMPERATURE=1.0
EVAL_TEMPERATURE=0 EVAL_TOP_P=1 EVAL_RESPONSE=512
TRAIN_SET=gsm8k VAL_SET=gsm8k SETS=gsm8k
. examples/common.sh

launch "$@"
