#!/usr/bin/env bash
# Group Policy Gradient on a laptop: trains SmolLM2-135M-Instruct to add, with real veRL, vLLM, Ray and FSDP, no GPU.
#
#     bash examples/quickstart.sh                     # about 5 minutes on 2 cores, 1 of them the installation
#     SEED=2 STEPS=20 bash examples/quickstart.sh     # other settings: the variables below
#     bash examples/quickstart.sh trainer.logger='[console,tensorboard,file]'     # any veRL setting, as Hydra takes it
#
# A second run reuses the environment, the model and the data. An interrupted run goes on from its last checkpoint:
#     RUN=runs/quickstart/NAME bash examples/quickstart.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# ---- what you may want to change -------------------------------------------------------------------------------
WORK=${WORK:-runs/quickstart}
SEED=${SEED:-1}
RUN=${RUN:-$WORK/$(date +%Y%m%d-%H%M%S)-seed$SEED}
MODEL=${MODEL:-}                # a model folder or hub id; empty: SmolLM2-135M-Instruct, from its PyPI package
STEPS=${STEPS:-10}
PROMPTS=${PROMPTS:-8}           # per step
N=${N:-8}                       # responses per prompt: the group
LR=${LR:-1e-5}
MAX_PROMPT=${MAX_PROMPT:-32}    # tokens
MAX_RESPONSE=${MAX_RESPONSE:-16}
LARGEST=${LARGEST:-12}          # sums of two numbers from 1 to this
HELD_OUT=${HELD_OUT:-40}        # questions kept out of training
SAVE_EVERY=${SAVE_EVERY:-5}     # steps; -1: no checkpoint
VENV=${VENV:-.venv}             # also PYTHON and TORCH_INDEX, see examples/setup_cpu.sh
DRY_RUN=${DRY_RUN:-0}           # 1: make model and data, write veRL's settings to RUN/arguments.txt, run nothing
# ----------------------------------------------------------------------------------------------------------------

export VENV
bash examples/setup_cpu.sh
PY=$(cd "$VENV" && pwd)/bin/python

if [ -z "$MODEL" ]; then
    MODEL=$WORK/model
    "$PY" examples/quickstart/model.py --out "$MODEL"
fi
DATA=$WORK/data-$LARGEST-$HELD_OUT-$SEED
"$PY" examples/quickstart/data.py --out "$DATA" --largest "$LARGEST" --held-out "$HELD_OUT" --seed "$SEED"
mkdir -p "$RUN"

DATA_ARGS=(
    data.train_files="$DATA/train.parquet"
    data.val_files="$DATA/test.parquet"
    data.train_batch_size="$PROMPTS"
    data.max_prompt_length="$MAX_PROMPT"
    data.max_response_length="$MAX_RESPONSE"
    data.seed="$SEED"
    reward.custom_reward_function.path=examples/quickstart/reward.py
)
MODEL_ARGS=(
    actor_rollout_ref.model.path="$MODEL"
)
ACTOR_ARGS=(
    actor_rollout_ref.actor.optim.lr="$LR"
    actor_rollout_ref.actor.ppo_mini_batch_size="$PROMPTS"
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16
    actor_rollout_ref.actor.calculate_entropy=True
)
ROLLOUT_ARGS=(
    actor_rollout_ref.rollout.n="$N"
    actor_rollout_ref.rollout.seed="$SEED"
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16
)
TRAINER_ARGS=(
    trainer.logger='[console,file]'
    trainer.total_training_steps="$STEPS"
    trainer.test_freq="$STEPS"
    trainer.save_freq="$SAVE_EVERY"
    trainer.max_actor_ckpt_to_keep=1
    trainer.default_local_dir="$RUN/checkpoints"
    trainer.validation_data_dir="$RUN/validation"
    hydra.run.dir="$RUN/hydra"
)

ARGS=(
    algorithm.adv_estimator=gpg +preset=cpu
    "${DATA_ARGS[@]}" "${MODEL_ARGS[@]}" "${ACTOR_ARGS[@]}" "${ROLLOUT_ARGS[@]}" "${TRAINER_ARGS[@]}" "$@"
)
if [ "$DRY_RUN" = 1 ]; then
    printf '%s\n' "${ARGS[@]}" >"$RUN/arguments.txt"
    exit 0
fi

# One metrics file a start: veRL's file logger starts its file again.
VERL_FILE_LOGGER_PATH=$(cd "$RUN" && pwd)/metrics-$(date +%s).jsonl "$PY" -m gpg_verl.report watch "$RUN" --log "$RUN/train.log" --steps "$STEPS" -- \
    "$PY" -m verl.trainer.main_ppo "${ARGS[@]}"

"$PY" -m gpg_verl.report show "$RUN"
[ "$SAVE_EVERY" != -1 ] || exit 0
checkpoint=$RUN/checkpoints/global_step_$(cat "$RUN/checkpoints/latest_checkpointed_iteration.txt")
cat <<END

checkpoint: $checkpoint
log:        $RUN/train.log
next:       STEPS=$((STEPS * 2)) RUN=$RUN bash examples/quickstart.sh      # train on from the checkpoint
            $PY -m gpg_verl check algorithm.adv_estimator=gpg ...          # look at a run of your own
END
