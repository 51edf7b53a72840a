#!/usr/bin/env bash
# T3, the ablation: Qwen2.5-Math-7B on MATH. A row has what it names, and all else is the same.
#
#     bash examples/text/t3.sh gpg_alpha                        # one node of 8 GPUs; data, training, evaluation, report
#     SEED=2 bash examples/text/t3.sh grpo                      # other settings: the variables
#     bash examples/text/t3.sh gpg_alpha trainer.save_freq=10   # any veRL setting, as Hydra takes it
#     SMOKE=1 bash examples/text/t3.sh gpg_alpha                # in miniature on a CPU, about 4 minutes
#
# Estimate for a row, not measured: 8 GPUs with 80 GB, 2 to 3 hours (16 to 24 H100 hours); with β_th up to twice that, as
# prompts are generated again. On 4 GPUs OFFLOAD=True and twice the time; fewer have no room for the fp32 weights,
# gradients and optimizer states of 122 GB.
# Disk: 92 GB a checkpoint, two while one is written.
#
# Chosen:
# - 64 prompts a step: 16 rows × 4 accumulations ÷ 8 responses on each of 8 GPUs; the paper does not say how many;
# - temperature 0.9: the paper's scripts name none, and 0.9 was TRL's default then;
# - evaluation: the paper is silent on sampling. Greedy, in 2,048 tokens: what the model's context of 4,096 leaves;
# - GRPO: the mean over each response first, as published. With veRL's default, the mean over tokens, and one update a
#   batch the ratio is 1, and this would be `GPG, F_norm=std, α=1` by another name;
# - Dr. GRPO: a constant in place of each response's length; its own rate and schedule, which ends at 0, as the paper
#   names no floor here; a format reward beside accuracy, as the paper's code has it. There it asks for think and answer
#   tags; T3's prompt does not ask for answer tags, so it would hardly ever be earned. FORMAT_STYLE=think_answer_lines is
#   the published one. veRL adds up the entropy as it does the loss: divided by MAX_RESPONSE here, elsewhere a mean.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
ROWS="gpg gpg_std gpg_alpha gpg_alpha_beta grpo dr_grpo"
. examples/rows.sh

case $ROW in
    gpg)            METHOD=gpg  F_NORM=1   ALPHA=none   BETA_TH=0               LABEL="GPG, F_norm=1, α=1" ;;
    gpg_std)        METHOD=gpg  F_NORM=std ALPHA=none   BETA_TH=0               LABEL="GPG, F_norm=std, α=1" ;;
    gpg_alpha)      METHOD=gpg  F_NORM=1   ALPHA=sample BETA_TH=0               LABEL="GPG, F_norm=1, α=B/(B−M)" ;;
    gpg_alpha_beta) METHOD=gpg  F_NORM=1   ALPHA=sample BETA_TH=${BETA_TH:-0.6} LABEL="GPG, F_norm=1, α=B/(B−M), β_th=0.6" ;;
    grpo)           METHOD=grpo F_NORM=std MEAN=seq-mean-token-mean             LABEL="GRPO" ;;
    dr_grpo)        METHOD=grpo F_NORM=1   MEAN=seq-mean-token-sum-norm         LABEL="Dr. GRPO"
                    LR=${LR:-3e-6} SCHEDULE=cosine FORMAT_STYLE=${FORMAT_STYLE:-think_line} ;;
esac

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
if [ "$METHOD" = grpo ]; then
    ROW_ARGS=(actor_rollout_ref.actor.loss_agg_mode="$MEAN")
fi
if [ "$ROW" = dr_grpo ]; then
    ROW_ARGS+=(
        actor_rollout_ref.actor.loss_scale_factor="$MAX_RESPONSE"
        +reward.custom_reward_function.reward_kwargs.format=1
        +reward.custom_reward_function.reward_kwargs.format_style="$FORMAT_STYLE"
    )
fi
SCHEDULE=${SCHEDULE:-constant} MIN_LR_RATIO=0 WARMUP=0.1
TEMPERATURE=0.9
EVAL_TEMPERATURE=0 EVAL_TOP_P=1 EVAL_RESPONSE=2048
TRAIN_SET=math
. examples/common.sh

launch "$@"
