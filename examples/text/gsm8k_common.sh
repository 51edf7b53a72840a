# GSM8K, the affordable first run, for gsm8k_0.5b.sh and gsm8k_1.5b.sh: not a run of the paper, but its method.
#
# Chosen: F_norm=1 and α=B/(B−M), the paper's, without refilling; 64 prompts a step; evaluation greedy, on GSM8K's own
# 1,319 test questions, which also are the held-out ones while training.

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
SCHEDULE=constant MIN_LR_RATIO=0 WARMUP=0.03
TEMPERATURE=1.0
EVAL_TEMPERATURE=0 EVAL_TOP_P=1 EVAL_RESPONSE=512

TRAIN_SET=gsm8k VAL_SET=gsm8k SETS=gsm8k
. examples/common.sh
