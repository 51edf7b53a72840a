# The argument groups of every recipe and its course: data, training, evaluation, report. A recipe names its rows
# (rows.sh), sets the variables of its run, sources this file and says: launch "$@". Of a row:
#
# LABEL     the paper's name for it, beside whose numbers the report puts it
# METHOD    gpg, with F_NORM (1, std), ALPHA (none, sample) and BETA_TH (empty: no refilling), or veRL's grpo, with F_NORM
# ROW_ARGS  what else it has for veRL
#
# Chosen where the paper and its code are silent, or veRL differs from TRL:
# - one update per rollout batch (ppo_mini_batch_size = train_batch_size): GPG is on-policy;
# - the paper's batch is one of 8 GPUs, whatever the number of GPUs here;
# - AdamW's weight decay and betas, gradient clipping at 1.0 and bf16 with fp32 masters are veRL's defaults;
# - calculate_entropy: the learning curves show the entropy; without a coefficient it has no gradient;
# - held-out accuracy while training: VAL_SET, greedy, every TEST_EVERY steps; the paper has none.

# ---- what you may want to change, beside the recipe's own variables ----------------------------------------------
KIND=${KIND:-text} # of recipe: its folder in examples/, data/ and runs/
SEED=${SEED:-1}
SHARED=${SHARED:-} # on a cluster: a folder that all its nodes see, by its absolute path
# The same folder again: the run goes on from its last checkpoint.
RUN=${RUN:-${SHARED:+$SHARED/}runs/$KIND/$NAME-seed$SEED}
DATA_DIR=${DATA_DIR:-${SHARED:+$SHARED/}data/$KIND} # prepared data, a folder for each prompt template; made if missing
NNODES=${NNODES:-1}                   # several: SHARED, Ray started on all, then this on the head
GPUS=${GPUS:-8}                       # a node
OFFLOAD=${OFFLOAD:-False}             # True: weights and optimizer lie in main memory while vLLM generates
CPU_UPDATE=${CPU_UPDATE:-False}       # True: FSDP keeps them there always, and the optimizer works there
GPU_MEMORY=${GPU_MEMORY:-0.6}         # vLLM's share of a GPU
MAX_TOKENS=${MAX_TOKENS:-16384}       # tokens of a GPU's micro-batch
PROMPT_LIMIT=${PROMPT_LIMIT:-1024}    # tokens; held-out questions are longer than MAX_PROMPT, the training data's
SAVE_EVERY=${SAVE_EVERY:-20}          # steps
TEST_EVERY=${TEST_EVERY:-20}
EVAL=${EVAL:-1}                       # 0: no evaluation at the end
# ------------------------------------------------------------------------------------------------------------------
. examples/lib.sh

SETS=${SETS:-aime24 math500 amc23 minerva olympiadbench}
VAL_SET=${VAL_SET:-math500}
PLAIN=${PLAIN:-0} # 1: prompts without the model's chat template
SAM=${SAM:-}      # for boxes: the model that makes masks of them in the evaluation
if [ "$SMOKE" = 1 ]; then
    RUN=$SMOKE_DIR/$NAME-$(date +%Y%m%d-%H%M%S)
    DATA_DIR=$SMOKE_DIR/data MODEL=$SMOKE_DIR/tiny/$SMOKE_MODEL
    NNODES=1 GPUS=1 STEPS=2 PROMPTS=4 MAX_PROMPT=128 PROMPT_LIMIT=128 MAX_RESPONSE=16 MAX_TOKENS=1024
    SAVE_EVERY=2 TEST_EVERY=2 OFFLOAD=False CPU_UPDATE=False SAM=${SAM:+$SMOKE_DIR/tiny/sam}
fi
whole NNODES GPUS PROMPTS N MAX_PROMPT PROMPT_LIMIT MAX_RESPONSE MAX_TOKENS SAVE_EVERY TEST_EVERY EPOCHS ${STEPS:+STEPS}
[ -z "${KL:-}" ] || number KL
one_of OFFLOAD True False
one_of CPU_UPDATE True False
one_of EVAL 0 1
one_of PLAIN 0 1
python_and_model
DATA=$DATA_DIR/$(basename "$TEMPLATE" .txt)

ALGORITHM_ARGS=(algorithm.adv_estimator="$METHOD")
if [ "$METHOD" = gpg ]; then
    ALGORITHM_ARGS+=(
        +algorithm.gpg.f_norm="$F_NORM"
        +algorithm.gpg.alpha="$ALPHA"
        ${BETA_TH:++algorithm.gpg.beta_th="$BETA_TH"}
    )
else
    ALGORITHM_ARGS+=(algorithm.norm_adv_by_std_in_grpo="$([ "$F_NORM" = std ] && echo True || echo False)")
fi
ALGORITHM_ARGS+=("${ROW_ARGS[@]}")
DATA_ARGS=(
    data.train_files="$DATA/${TRAIN_SET}_train.parquet"
    data.val_files="$(evaluation_file "$VAL_SET")"
    data.train_batch_size="$PROMPTS"
    data.max_prompt_length="$PROMPT_LIMIT"
    data.max_response_length="$MAX_RESPONSE"
    data.seed="$SEED"
    "${REWARD_ARGS[@]}"
)
MODEL_ARGS=(actor_rollout_ref.model.path="$MODEL")
[ "$PLAIN" = 0 ] || MODEL_ARGS+=(+prompt=plain)
ACTOR_ARGS=(
    actor_rollout_ref.actor.strategy=fsdp2
    actor_rollout_ref.actor.optim.lr="$LR"
    actor_rollout_ref.actor.optim.lr_scheduler_type="$SCHEDULE"
    actor_rollout_ref.actor.optim.lr_warmup_steps_ratio="$WARMUP"
    actor_rollout_ref.actor.optim.min_lr_ratio="$MIN_LR_RATIO"
    actor_rollout_ref.actor.ppo_mini_batch_size="$PROMPTS"
    actor_rollout_ref.actor.use_dynamic_bsz=True
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$MAX_TOKENS"
    actor_rollout_ref.actor.calculate_entropy=True
    actor_rollout_ref.actor.entropy_from_logits_with_chunking=True
    actor_rollout_ref.actor.fsdp_config.param_offload="$OFFLOAD"
    actor_rollout_ref.actor.fsdp_config.optimizer_offload="$OFFLOAD"
    actor_rollout_ref.actor.fsdp_config.offload_policy="$CPU_UPDATE"
)
ROLLOUT_ARGS=(
    actor_rollout_ref.rollout.name=vllm
    actor_rollout_ref.rollout.n="$N"
    actor_rollout_ref.rollout.temperature="$TEMPERATURE"
    actor_rollout_ref.rollout.top_p=1
    actor_rollout_ref.rollout.tensor_model_parallel_size=1
    actor_rollout_ref.rollout.gpu_memory_utilization="$GPU_MEMORY"
    actor_rollout_ref.rollout.seed="$SEED"
)
EVAL_ARGS=() # what the evaluation has beside its own
TRAINER_ARGS=(
    trainer.nnodes="$NNODES"
    trainer.n_gpus_per_node="$GPUS"
    trainer.total_epochs="$EPOCHS"
    trainer.total_training_steps="${STEPS:-null}"
    trainer.logger='[console,file]'
    trainer.test_freq="$TEST_EVERY"
    trainer.save_freq="$SAVE_EVERY"
    trainer.max_actor_ckpt_to_keep=1
    trainer.default_local_dir="$RUN/checkpoints"
    trainer.validation_data_dir="$RUN/validation"
    hydra.run.dir="$RUN/hydra"
)

launch() {
    if [ "$TRAINS" = 0 ]; then
        evaluate "$MODEL" "$OUT" "$@"
        return
    fi
    set -- "${ALGORITHM_ARGS[@]}" "${DATA_ARGS[@]}" "${MODEL_ARGS[@]}" "${ACTOR_ARGS[@]}" "${ROLLOUT_ARGS[@]}" \
        "${TRAINER_ARGS[@]}" "${SMOKE_ARGS[@]}" "$@"
    if [ "$DRY_RUN" = 1 ]; then
        print_command "$@"
        [ "$EVAL" = 0 ] || evaluate "$MODEL"
        return
    fi
    check "$@"
    prepare_evaluation
    prepare "$TRAIN_SET" train "${TRAIN_TEMPLATE:-$TEMPLATE}" --tokenizer "$MODEL" --max-prompt-length "$MAX_PROMPT"

    local steps=$RUN/checkpoints/latest_checkpointed_iteration.txt
    [ ! -f "$steps" ] || printf '%s: going on from step %s of %s\n' "$NAME" "$(cat "$steps")" "$RUN"
    mkdir -p "$RUN"
    claim >"$RUN/run.json"
    verl "$RUN" "${STEPS:-}" "$@"
    if [ "$EVAL" = 1 ]; then
        evaluate "$RUN/checkpoints/global_step_$(cat "$steps")"
    fi
    "$PY" -m gpg_verl.report "$RUN"
}

claim() { # which row of the paper's tables this is a run of
    local table=
    [[ $TABLE != t[1-7] ]] || table="\"table\": \"${TABLE^^}\", "
    printf '{%s"row": "%s"}\n' "$table" "$LABEL"
}

# A contradiction is told at once, before data is downloaded; what this machine lacks, the run itself says.
check() {
    local said
    [[ " $* " == *" algorithm.adv_estimator=gpg "* ]] || return 0
    said=$(GPG_WORK_ELSEWHERE=1 "$PY" -m gpg_verl check "$@" 2>&1) && return
    grep '^error' <<<"$said" >&2 || printf '%s\n' "$said" >&2
    stop "the settings contradict each other; nothing was started"
}

evaluate() { # evaluate MODEL [OUT [veRL setting ...]]
    OUT=${2:-$RUN/eval} DATA_DIR=$DATA_DIR SETS=$SETS TEMPLATE=$TEMPLATE PLAIN=$PLAIN SEED=$SEED \
        NNODES=$NNODES GPUS=$GPUS SMOKE=$SMOKE SMOKE_DIR=$SMOKE_DIR DRY_RUN=$DRY_RUN PY=${PY:-} SOURCES=$SOURCES \
        KIND=$KIND SAM=$SAM TEMPERATURE=$EVAL_TEMPERATURE TOP_P=$EVAL_TOP_P MAX_RESPONSE=$EVAL_RESPONSE K=${K:-1} \
        bash examples/eval.sh "$1" "${EVAL_ARGS[@]}" "${@:3}"
}
