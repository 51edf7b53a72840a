#!/usr/bin/env bash
# Formatter check, linter and tests, on a bare machine with Python 3.11: `bash tests/run.sh [pytest arguments]`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash examples/setup_cpu.sh requirements-test.txt
VENV=${VENV:-.venv}
"$VENV/bin/ruff" format --check .
"$VENV/bin/ruff" check .
exec "$VENV/bin/python" -m pytest "$@"
