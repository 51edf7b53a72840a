#!/usr/bin/env bash
# Formatter check, linter and tests, on a bare machine with Python 3.11: `bash tests/run.sh [pytest arguments]`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash examples/setup_cpu.sh requirements-test.txt
VENV=${VENV:-.venv}
"$VENV/bin/ruff" format --check .
"$VENV/bin/ruff" check .
PYTEST=("$VENV/bin/python" -m pytest)
[ $# = 0 ] || exec "${PYTEST[@]}" "$@"

# Two processes, for two cores: the real runs in one, everything else in the other (conftest.py says which is which).
LOG=$(mktemp)
trap 'kill $! 2>/dev/null || true; rm -f "$LOG"' EXIT
echo "real runs, in the background: their report comes at the end"
RUNS=real_run
[ -n "${CI:-}" ] || RUNS="real_run and not gpu_others" # a minute and more, of settings beyond the core
"${PYTEST[@]}" -m "$RUNS" >"$LOG" 2>&1 &
code=0
"${PYTEST[@]}" -m "not real_run" || code=$?
wait $! || code=$?
cat "$LOG"
exit $code
