#!/usr/bin/env bash
# Evaluates a model on AIME24, MATH-500, AMC23, Minerva and OlympiadBench: what it takes and gives is in examples/eval.sh.
#
#     bash examples/text/eval.sh runs/text/gpg_rs1-seed1/checkpoints/global_step_100   # a veRL checkpoint (FSDP)
#     bash examples/text/eval.sh deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B             # a hub id, or a model folder
#     SMOKE=1 bash examples/text/eval.sh                                               # in miniature on a CPU
exec bash "$(dirname "${BASH_SOURCE[0]}")/../eval.sh" "$@"
