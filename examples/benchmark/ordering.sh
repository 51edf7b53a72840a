#!/usr/bin/env bash
# T3's methods on the quickstart's model, with real veRL, vLLM and FSDP: the same seeds, steps and prompts a step.
#
#     bash examples/benchmark/ordering.sh             # 15 runs of 10 steps, about 30 minutes on 2 idle cores
#     SEEDS="6 7" METHODS="gpg grpo" bash examples/benchmark/ordering.sh # other settings: the variables
#
# A method is what its row of examples/text/t3.sh has in ALGORITHM_ARGS; all else is the quickstart's. Dr. GRPO has
# its own learning rate, 1.5 times the others', and its cosine schedule, as in T3; the task's reward, accuracy, is the
# same for all. Runs that are finished are kept: the same command goes on where it was stopped.
#
# Methods can differ only where most groups are all wrong or all right. So responses are short and the rate is low: the
# valid share is to stay between 0.15 and 0.5 for ten steps. docs/method.md has the pilot runs behind it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# ---- what you may want to change ---------------------------------------------------------------------------------
SEEDS=${SEEDS:-1 2 3 4 5}
METHODS=${METHODS:-gpg gpg_alpha gpg_alpha_beta} # the others are compared with the first; also gpg_std grpo dr_grpo
STEPS=${STEPS:-10}
TEST_EVERY=${TEST_EVERY:-5} # steps
LR=${LR:-2e-6}
export PROMPTS=${PROMPTS:-6} LARGEST=${LARGEST:-12} HELD_OUT=${HELD_OUT:-40} MAX_RESPONSE=${MAX_RESPONSE:-8}
OUT=${OUT:-runs/ordering}
VENV=${VENV:-.venv}
# ------------------------------------------------------------------------------------------------------------------
BETA_TH=0.6 FORMAT_STYLE=think_line # what the recipes' arguments refer to

runs=() open=()
for seed in $SEEDS; do # methods inside seeds: what else the machine does meanwhile falls on all of them alike
    for method in $METHODS; do
        # The row's name and arguments, from its recipe where it is only printed; a wrong METHODS ends here.
        row=$(DRY_RUN=1 EVAL=0 && . examples/text/t3.sh "$method" >/dev/null && printf '%s\n' "$LABEL" "${ALGORITHM_ARGS[@]}")
        mapfile -t row <<<"$row"
        ARGS=("${row[@]:1}")
        run=$OUT/$method-seed$seed
        runs+=("$run")
        [ ! -f "$run/finished" ] || continue
        rm -rf "$run" # a start that was stopped: seconds and steps are those of one undisturbed run
        mkdir -p "$run"
        printf '{"row": "%s"}\n' "${row[0]}" >"$run/run.json" # not a run of the paper's table
        if [ "$method" = dr_grpo ]; then
            ARGS+=(
                actor_rollout_ref.actor.optim.lr="$(awk "BEGIN { print 1.5 * $LR }")"
                actor_rollout_ref.actor.optim.lr_scheduler_type=cosine
            )
        fi
        ARGS+=(actor_rollout_ref.actor.calculate_entropy=False) # costs seconds, and only on some sides
        DRY_RUN=1 RUN=$run SEED=$seed STEPS=$STEPS LR=$LR VENV=$VENV SAVE_EVERY=-1 \
            bash examples/quickstart.sh trainer.test_freq="$TEST_EVERY" "${ARGS[@]}"
        open+=("$run")
    done
done
if [ ${#open[@]} -gt 0 ]; then
    echo "${#open[@]} runs to do; log: $OUT/runs.log"
    "$VENV/bin/python" examples/benchmark/ordering_runs.py "${open[@]}" >"$OUT/runs.log" 2>&1
fi
"$VENV/bin/python" -m gpg_verl.report "${runs[@]}" --out "$OUT/report"
