# T1's setting, for gpg_rs1.sh and gpg_rs3.sh, which differ in the training data alone.
#
# Estimate, not measured: one node of 8 GPUs with 80 GB, 1 to 2 hours of training (8 to 16 H100 hours) and half an hour
# of evaluation. With 40 or 48 GB: MAX_TOKENS=8192. On 4 GPUs twice the time; on one with 80 GB, OFFLOAD=True.
#
# Chosen:
# - 64 prompts a step: the paper's 16 GPUs × 6 rows × 4 accumulations ÷ 6 responses, on any number of GPUs;
# - F_norm=std, α=1: the paper's text says F_norm=1 and α=B/(B−M), its code for these runs divides by the standard
#   deviation and has no α. The numbers came from the code;
# - rewards: format 1 and length-aware accuracy 2, which reward_fns has for these data sources.

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
SCHEDULE=cosine MIN_LR_RATIO=0.1 WARMUP=0.1 EPOCHS=2 # the steps end it first
TEMPERATURE=0.7
EVAL_TEMPERATURE=0.6 EVAL_TOP_P=0.95 EVAL_RESPONSE=32768

ALGORITHM_ARGS=(
    algorithm.adv_estimator=gpg
    +algorithm.gpg.f_norm=std
    +algorithm.gpg.alpha=none
)
. examples/common.sh
