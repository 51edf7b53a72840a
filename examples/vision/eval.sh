#!/usr/bin/env bash
# Evaluates a model on a vision table's sets: T4 CV-Bench, T5 LISA, T6 the four classification sets, T7 GEOQA.
#
#     bash examples/vision/eval.sh t4 Qwen/Qwen2-VL-2B                                    # a hub id, or a model folder
#     bash examples/vision/eval.sh t7 runs/vision/t7_gpg-seed1/checkpoints/global_step_501  # a veRL checkpoint (FSDP)
#     SETS=pets bash examples/vision/eval.sh t6 MODEL                                     # of T6 one set
#     SMOKE=1 bash examples/vision/eval.sh t4                                             # in miniature on a CPU
#
# Settings are those of the table's recipes: t4_common.sh to t7_common.sh. The result is a run for the report:
#     python -m gpg_verl.report runs/eval/t4-Qwen2-VL-2B --table T4 --row Qwen2-VL-2B
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

case ${1:-} in
    t4 | t5 | t6 | t7) ;;
    *) printf 'eval: which table? bash examples/vision/eval.sh t4|t5|t6|t7 MODEL\n' >&2 && exit 1 ;;
esac
MODEL=${2:-${MODEL:-}}
if [ -z "$MODEL" ] && [ "${SMOKE:-0}" = 0 ]; then
    printf 'eval: which model? bash examples/vision/eval.sh %s MODEL, a veRL checkpoint, a folder or a hub id\n' "$1" >&2
    exit 1
fi
OUT=${OUT:-runs/eval/$1-$(sed 's|.*/checkpoints/||; s|/*$||; s|.*/||' <<<"${MODEL:-smoke}")}
SET="flowers pets aircraft cars" # T6's
. "examples/vision/$1_common.sh"

evaluate "$MODEL" "$OUT"
