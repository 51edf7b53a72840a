#!/usr/bin/env bash
# Evaluates a model on AIME24, MATH-500, AMC23, Minerva and OlympiadBench, through veRL's validation.
#
#     bash examples/eval.sh runs/text/gpg_rs1-seed1/checkpoints/global_step_100     # a veRL checkpoint (FSDP)
#     bash examples/eval.sh deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B               # a hub id, or a model folder
#     K=16 SETS="aime24 amc23" bash examples/eval.sh MODEL                          # avg@16
#     SMOKE=1 bash examples/eval.sh                                                 # in miniature on a CPU
#
# With a table first (t1 to t7, gsm8k), on that table's sets and with the settings of its recipes:
#     bash examples/eval.sh t4 Qwen/Qwen2-VL-2B                                     # the base model's row
#     SETS=pets bash examples/eval.sh t6 MODEL                                      # of T6 one set
#     python -m gpg_verl.report runs/eval/t4-Qwen2-VL-2B --table T4 --row Qwen2-VL-2B
#
# Every answer is kept in OUT/validation/*.jsonl, with its scores; OUT is a run for `python -m gpg_verl.report`.
# Without a table the defaults are T1's: temperature 0.6, top-p 0.95, up to 32,768 tokens, one answer a question.
# Estimate, not measured: 1.5B at T1's settings 1 to 2 H100 hours at K=1; a 7B model in 2,048 tokens a quarter of that.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TABLE=
if [[ ${1:-} =~ ^(t[1-7]|gsm8k)$ && ! -e $1 ]]; then # not a folder with a model
    TABLE=$1
    shift
fi

# ---- what you may want to change ---------------------------------------------------------------------------------
MODEL=${1:-${MODEL:-}}
SETS=${SETS:-aime24 math500 amc23 minerva olympiadbench}
K=${K:-1}                           # answers a question: avg@K
TEMPERATURE=${TEMPERATURE:-0.6}     # 0: greedy
TOP_P=${TOP_P:-0.95}
MAX_RESPONSE=${MAX_RESPONSE:-32768} # tokens; with PROMPT_LIMIT no more than the model's context
PROMPT_LIMIT=${PROMPT_LIMIT:-2048}  # tokens; the longest question, of OlympiadBench, has 4,415 characters
TEMPLATE=${TEMPLATE:-think-answer}  # the prompt, as in `python -m gpg_verl.data`
PLAIN=${PLAIN:-0}                   # 1: without the model's chat template
SEED=${SEED:-1}
KIND=${KIND:-text}                  # of recipe: its folder in examples/ and data/
DATA_DIR=${DATA_DIR:-${SHARED:+$SHARED/}data/$KIND}
NNODES=${NNODES:-1}
GPUS=${GPUS:-8}
GPU_MEMORY=${GPU_MEMORY:-0.8}       # the trainer's weights lie in main memory meanwhile
SAM=${SAM:-}                        # for boxes: the model that makes masks of them, as facebook/sam-vit-huge
OUT=${OUT:-}                        # default: runs/eval/ and the model's name
# ------------------------------------------------------------------------------------------------------------------
NAME=eval
. examples/lib.sh

if [ -z "$MODEL" ] && [ "$SMOKE" = 0 ]; then
    stop "which model? bash examples/eval.sh ${TABLE:+$TABLE }MODEL, a veRL checkpoint, a model folder or a hub id"
fi
model_name() { sed 's|.*/checkpoints/||; s|/*$||; s|.*/||' <<<"$1"; }
if [ -n "$TABLE" ]; then # its recipe comes back here, with the table's settings
    export MODEL OUT=${OUT:-${SHARED:+$SHARED/}runs/eval/$TABLE-$(model_name "${MODEL:-smoke}")}
    exec bash examples/*/"$TABLE.sh" eval "${@:2}"
fi

OFFLOAD=True
if [ "$SMOKE" = 1 ]; then
    DATA_DIR=$SMOKE_DIR/data MODEL=${MODEL:-$SMOKE_DIR/tiny/$SMOKE_MODEL}
    NNODES=1 GPUS=1 MAX_RESPONSE=16 PROMPT_LIMIT=128 OFFLOAD=False SAM=${SAM:+$SMOKE_DIR/tiny/sam}
fi
whole K MAX_RESPONSE PROMPT_LIMIT NNODES GPUS
one_of PLAIN 0 1
number TEMPERATURE
sample=True
if [[ $TEMPERATURE =~ ^0*\.?0*$ ]]; then
    sample=False
    [ "$K" = 1 ] || stop "K=$K with TEMPERATURE=0: greedy answers are all the same; set a temperature, or K=1"
fi
python_and_model
DATA=$DATA_DIR/$(basename "$TEMPLATE" .txt)
OUT=${OUT:-${SHARED:+$SHARED/}runs/eval/$(model_name "$MODEL")}

files=()
for set in $SETS; do files+=("$(evaluation_file "$set")"); done
files=$(IFS=, && printf '[%s]' "${files[*]}")
DATA_ARGS=(
    data.train_files="$files" # not trained on, but veRL opens it
    data.val_files="$files"
    data.train_batch_size=1
    data.max_prompt_length="$PROMPT_LIMIT"
    data.max_response_length="$MAX_RESPONSE"
    "${REWARD_ARGS[@]}"
)
MODEL_ARGS=(actor_rollout_ref.model.path="$MODEL")
[ "$PLAIN" = 0 ] || MODEL_ARGS+=(+prompt=plain)
ACTOR_ARGS=(
    actor_rollout_ref.actor.strategy=fsdp2
    actor_rollout_ref.actor.ppo_mini_batch_size=1
    actor_rollout_ref.actor.use_dynamic_bsz=True
    actor_rollout_ref.actor.fsdp_config.param_offload="$OFFLOAD"
    actor_rollout_ref.actor.fsdp_config.optimizer_offload="$OFFLOAD"
)
ROLLOUT_ARGS=(
    actor_rollout_ref.rollout.name=vllm
    actor_rollout_ref.rollout.tensor_model_parallel_size=1
    actor_rollout_ref.rollout.gpu_memory_utilization="$GPU_MEMORY"
    actor_rollout_ref.rollout.seed="$SEED"
    actor_rollout_ref.rollout.val_kwargs.n="$K"
    actor_rollout_ref.rollout.val_kwargs.do_sample="$sample"
    actor_rollout_ref.rollout.val_kwargs.temperature="$TEMPERATURE"
    actor_rollout_ref.rollout.val_kwargs.top_p="$TOP_P"
)
ALGORITHM_ARGS=(algorithm.adv_estimator=grpo) # nothing is trained: this only keeps the critic away
TRAINER_ARGS=(
    trainer.val_only=True
    trainer.val_before_train=True
    trainer.resume_mode=disable
    trainer.nnodes="$NNODES"
    trainer.n_gpus_per_node="$GPUS"
    trainer.logger='[console,file]'
    trainer.default_local_dir="$OUT/checkpoints"
    trainer.validation_data_dir="$OUT/validation"
    hydra.run.dir="$OUT/hydra"
)

MASKS=(-m gpg_verl.report.masks "$OUT" --model "$SAM" --data)
for set in $SETS; do MASKS+=("$(evaluation_file "$set")"); done

set -- "${ALGORITHM_ARGS[@]}" "${DATA_ARGS[@]}" "${MODEL_ARGS[@]}" "${ACTOR_ARGS[@]}" "${ROLLOUT_ARGS[@]}" \
    "${TRAINER_ARGS[@]}" "${SMOKE_ARGS[@]}" "${@:2}"
if [ "$DRY_RUN" = 1 ]; then
    print_command "$@"
    [ -z "$SAM" ] || printf 'python %s\n' "${MASKS[*]}"
    exit
fi
prepare_evaluation
mkdir -p "$OUT"
verl "$OUT" "" "$@"
[ -z "$SAM" ] || "$PY" "${MASKS[@]}"
