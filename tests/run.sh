#!/usr/bin/env bash
# Formatter check, linter and tests, on a bare machine with Python 3.11: `bash tests/run.sh [pytest arguments]`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash examples/setup_cpu.sh requirements-test.txt
VENV=${VENV:-.venv}
"$VENV/bin/ruff" format --check .
"$VENV/bin/ruff" check .
# Two processes, for two cores (conftest.py says what stays together); with arguments of your own, one.
[ $# -gt 0 ] || set -- -n 2 --dist loadgroup --no-loadscope-reorder
exec "$VENV/bin/python" -m pytest "$@"
