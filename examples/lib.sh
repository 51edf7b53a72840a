# What the recipes and eval.sh share. Sourced from the repository's root; NAME is what the messages begin with.
#
# PY        the Python that has veRL and gpg-verl (default: python; with SMOKE=1 the environment of examples/setup_cpu.sh)
# SOURCES   a folder with raw data in place of the hub: NAME.jsonl or NAME_train.jsonl (or .json, .parquet, .arrow), or
#           a folder NAME

SMOKE=${SMOKE:-0}
DRY_RUN=${DRY_RUN:-0} # 1: print the commands, run nothing
SMOKE_DIR=${SMOKE_DIR:-${SHARED:+$SHARED/}runs/smoke}
SMOKE_MODEL=${SMOKE_MODEL:-model} # which of the tiny models
SOURCES=${SOURCES:-}
REWARD_ARGS=(
    reward.custom_reward_function.path=pkg://reward_fns
    reward.reward_manager.source=importlib # tells the rewards what was cut off
    reward.reward_manager.name=TruncationRewardManager
    reward.reward_manager.module.path=pkg://gpg_verl.reward_manager
)
SMOKE_ARGS=() # what a command has beside its recipe's: a CPU, and the memory that the tiny model needs
if [ "$SMOKE" = 1 ]; then
    SOURCES=$SMOKE_DIR/tiny/sources
    SMOKE_ARGS=(
        +preset=cpu
        actor_rollout_ref.rollout.max_num_seqs=32
        actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=16
        actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes=67108864
    )
fi

stop() {
    printf '%s: %s\n' "$NAME" "$1" >&2
    exit 1
}

whole() { # whole VARIABLE...
    local name
    for name; do
        [[ ${!name} =~ ^[1-9][0-9]*$ ]] || stop "$name=${!name}: expected a whole number of 1 or more"
    done
}

number() { # number VARIABLE
    [[ ${!1} =~ ^[0-9]*\.?[0-9]+$ ]] || stop "$1=${!1}: expected a number of 0 or more"
}

one_of() { # one_of VARIABLE VALUE...
    local name=$1
    shift
    [[ " $* " == *" ${!name} "* ]] || stop "$name=${!name}: allowed are $*"
}

# Sets PY, and MODEL and SAM to what is loaded. A dry run has no model to load, but a missing folder shows there too.
python_and_model() {
    if [[ $SMOKE = 0 && $MODEL = [./~]* && ! -e $MODEL ]]; then
        stop "MODEL=$MODEL: no such folder; name a Hugging Face model, a veRL checkpoint or a hub id"
    fi
    [ "$DRY_RUN" = 0 ] || return 0
    if [ -z "${PY:-}" ] && [ "$SMOKE" = 1 ]; then
        bash examples/setup_cpu.sh
        PY=$(cd "${VENV:-.venv}" && pwd)/bin/python
    fi
    PY=${PY:-python}
    [ "$SMOKE" = 0 ] || "$PY" examples/smoke.py "$KIND" --out "$SMOKE_DIR/tiny"
    MODEL=$("$PY" examples/model.py "$MODEL" MODEL)
    [ -z "$SAM" ] || SAM=$("$PY" examples/model.py "$SAM" SAM)
}

prepare() { # prepare SET SPLIT TEMPLATE [argument of gpg_verl.data ...]
    local set=$1 split=$2 template=$3 file source=()
    shift 3
    [ ! -f "$DATA/${set}_$split.parquet" ] || return 0
    if [ -n "$SOURCES" ]; then
        for file in "$SOURCES/${set}_$split".* "$SOURCES/$set".* "$SOURCES/$set"; do
            if [ -e "$file" ]; then
                source=(--source "$file")
                break
            fi
        done
        [ ${#source[@]} -gt 0 ] || stop "SOURCES=$SOURCES: no file $set or ${set}_$split (.jsonl, .json, .parquet, .arrow), no folder $set"
    fi
    [ "$SMOKE" = 0 ] || source+=(--allow-count)
    "$PY" -m gpg_verl.data "$set" --out "$DATA" --split "$split" --template "$template" "${source[@]}" "$@"
}

# An evaluation set is SET, whose split is test, or SET:SPLIT.
prepare_evaluation() {
    local set split
    for set in $SETS; do
        [[ $set = *:* ]] || set=$set:test
        prepare "${set%:*}" "${set#*:}" "$TEMPLATE"
    done
}

evaluation_file() { # evaluation_file SET or SET:SPLIT
    local set=$1
    [[ $set = *:* ]] || set=$set:test
    printf '%s/%s.parquet' "$DATA" "${set/:/_}"
}

# One metrics file a start: veRL's file logger starts its file again. LIMIT: seconds after which a run is ended.
verl() { # verl FOLDER STEPS override...
    local folder=$1 steps=$2 metrics
    shift 2
    metrics=$(cd "$folder" && pwd)/metrics-$(date +%s).jsonl
    [ "$SMOKE" = 0 ] || touch "$folder/smoke" # the report says so beside the paper's numbers
    [ "$NNODES" = 1 ] || export RAY_ADDRESS=${RAY_ADDRESS:-auto} # the cluster that `ray start` made on all nodes
    # A cluster's processes do not have this one's environment.
    [ -z "${RAY_ADDRESS:-}" ] || set -- "$@" "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH=$metrics"
    VERL_FILE_LOGGER_PATH=$metrics ${LIMIT:+timeout --foreground "$LIMIT"} \
        "$PY" -m gpg_verl.report watch "$folder" --log "$folder/verl.log" ${steps:+--steps "$steps"} -- \
        "$PY" -m verl.trainer.main_ppo "$@"
}

print_command() { # of verl, one argument a line
    printf 'python -m verl.trainer.main_ppo'
    printf ' \\\n    %q' "$@"
    printf '\n'
}
