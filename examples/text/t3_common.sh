# T3's setting, the same for every t3_*.sh: a row's script has what its row names, and nothing else.
#
# Estimate for a row, not measured: 8 GPUs with 80 GB, 2 to 3 hours (16 to 24 H100 hours); with β_th up to twice that, as
# prompts are generated again. On 4 GPUs OFFLOAD=True and twice the time; fewer have no room for the fp32 weights,
# gradients and optimizer states of 122 GB.
# Disk: 92 GB a checkpoint, two while one is written.
#
# Chosen:
# - 64 prompts a step: 16 rows × 4 accumulations ÷ 8 responses on each of 8 GPUs; the paper does not say how many;
# - temperature 0.9: the paper's scripts name none, and 0.9 was TRL's default then;
# - evaluation: the paper is silent on sampling. Greedy, in 2,048 tokens: what the model's context of 4,096 leaves.

# ---- what you may want to change, beside common.sh's -------------------------------------------------------------
MODEL=${MODEL:-Qwen/Qwen2.5-Math-7B}
TEMPLATE=${TEMPLATE:-think}    # the paper's own wording: a file, see `python -m gpg_verl.data --help`
PROMPTS=${PROMPTS:-64}         # a step
N=${N:-8}                      # responses to a prompt: the group
LR=${LR:-2e-6}
EPOCHS=${EPOCHS:-1}
STEPS=${STEPS:-}               # instead of EPOCHS
MAX_PROMPT=${MAX_PROMPT:-512}  # tokens
MAX_RESPONSE=${MAX_RESPONSE:-1024}
# ------------------------------------------------------------------------------------------------------------------
SCHEDULE=${SCHEDULE:-constant} MIN_LR_RATIO=0 WARMUP=0.1
TEMPERATURE=0.9
EVAL_TEMPERATURE=0 EVAL_TOP_P=1 EVAL_RESPONSE=2048

TRAIN_SET=math
. examples/common.sh
