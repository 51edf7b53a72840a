# What the vision recipes share, for t4.sh to t7.sh, on top of examples/common.sh: the rows, and the settings.
#
# Chosen where the paper and its code are silent, or veRL differs from TRL:
# - the batch: the paper's code gives each device one prompt with its group; a step's prompts are those of 8 devices;
# - the schedule: TRL's default falls in a line to 0, without warm-up. veRL has constant and cosine: cosine to 0 is on
#   average the same, and nowhere more than 0.11 of the full rate away;
# - seq-mean-token-mean: the mean over each response first, as in the paper's vision code, for GPG and GRPO alike;
# - the whole model is trained, the vision tower too, as there: veRL's default (freeze_vision_tower=False);
# - images are brought to at most 401,408 pixels (512 tokens) when the data is made: trainer and rollout see the same;
# - GRPO is TRL's: a KL term of 0.04 (its low-variance estimate) against a reference worker, which GPG does without.
#   The paper's GPG code computes the reference too, but only to log a number;
# - evaluation: greedy, in as many tokens as in training.
case $ROW in
    gpg)  METHOD=gpg  F_NORM=1   ALPHA=sample BETA_TH=${BETA_TH:-0.4} LABEL="+ GPG" ;;
    grpo) METHOD=grpo F_NORM=std KL=${KL:-0.04}                       LABEL="+ GRPO"
          ROW_ARGS=(
              actor_rollout_ref.actor.use_kl_loss=True
              actor_rollout_ref.actor.kl_loss_coef="$KL"
              actor_rollout_ref.actor.kl_loss_type=low_var_kl
          ) ;;
esac
ROW_ARGS+=(actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean)
KIND=vision
SMOKE_DIR=${SMOKE_DIR:-runs/smoke/vision}
N=${N:-8} # responses to a prompt: the group
LR=${LR:-1e-6}
STEPS=${STEPS:-} # instead of EPOCHS
MAX_PROMPT=${MAX_PROMPT:-1024} # tokens, with the image's
SCHEDULE=cosine MIN_LR_RATIO=0 WARMUP=0
TEMPERATURE=1.0
EVAL_TEMPERATURE=0 EVAL_TOP_P=1 EVAL_RESPONSE=$MAX_RESPONSE
. examples/common.sh

# vLLM keeps the images' mean and deviation in buffers that no checkpoint holds. veRL's default, random weights until
# the first sync, leaves them random; a GPG run gets this by itself, GRPO and the evaluation do not.
LOAD=actor_rollout_ref.rollout.load_format=auto
ROLLOUT_ARGS+=("$LOAD")
EVAL_ARGS=("$LOAD")
