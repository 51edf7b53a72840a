#!/usr/bin/env bash
# Makes a virtual environment with everything that a run on a CPU needs; does nothing where it is already there.
#
#     bash examples/setup_cpu.sh [requirements file ...]     # more requirements, e.g. requirements-test.txt
#
# PYTHON       the Python to use (default: python3.11, else python3)
# VENV         where the environment goes (default: .venv beside this project's README)
# TORCH_INDEX  where torch's CPU build comes from, if pip's own index would give a CUDA build of several GB:
#              an index URL or a folder (default: PyTorch's CPU index)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
TORCH=torch==2.13.0
TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}

stop() { printf '\nsetup: %s\n' "$1" >&2; exit 1; }

PYTHON=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
[ -n "$PYTHON" ] || stop "found no python3.11 and no python3: install Python 3.11, or set PYTHON to one"
found=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || stop "$PYTHON does not run"
case $found in
    3.11 | 3.12) ;;
    *) stop "$PYTHON is Python $found, the pinned packages were tried with 3.11: set PYTHON to a python3.11" ;;
esac

# A stamp for each set of requirements; one with more requirements holds for the bare set too.
wanted() { cat requirements-cpu.txt "$@" setup.py examples/setup_cpu.sh | sha256sum; }
stamp() { printf '%s/.setup-%s' "$VENV" "$(printf '%s' "$*" | tr -c 'a-z' '-')"; }
if [ -x "$VENV/bin/python" ] && [ "$(wanted "$@")" = "$(cat "$(stamp "$@")" 2>/dev/null)" ]; then
    exit 0
fi

echo "setup: Python $found, environment in $VENV (about 4 GB; 1 to 5 minutes the first time)"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV" ||
    stop "could not make $VENV; on Debian and Ubuntu the package python3.11-venv is needed"
pip=("$VENV/bin/python" -m pip --disable-pip-version-check)
# Byte code is made where a module is first imported: of most of them never.
install=("${pip[@]}" install -qq --no-deps --no-compile --progress-bar off)
failed="(see above); check that its index can be reached, then start again"

echo "setup: torch (CPU build) and $(grep -c == requirements-cpu.txt) pinned packages (about 1 GB to download)"
# pip installs one package after the other: two of it, each with every second line, take half of the time.
half=$(mktemp -d)
grep '^[^#].*==' requirements-cpu.txt | awk -v half="$half" '{ print > (half "/" (NR % 2 ? "here" : "beside") ".txt") }'
"${install[@]}" -r "$half/beside.txt" &
trap 'kill $! 2>/dev/null || true; rm -rf "$half"' EXIT

# A CPU needs no CUDA build: ask pip what it would take, and go elsewhere if that brings nvidia packages.
if ! "$VENV/bin/python" -c 'import importlib.metadata as m, sys; sys.exit(not m.version("torch").startswith("2.13.0"))' 2>/dev/null; then
    plan=$("${pip[@]}" install -qq --dry-run --ignore-installed --no-deps --report - "$TORCH" 2>/dev/null || true)
    if [ -n "$plan" ] && ! grep -qiE '"(nvidia|cuda)-' <<<"$plan"; then
        "${install[@]}" "$TORCH" || stop "pip could not install $TORCH $failed"
    elif [ -d "$TORCH_INDEX" ]; then
        "${install[@]}" --no-index --find-links "$TORCH_INDEX" "$TORCH" || stop "no $TORCH in $TORCH_INDEX"
    else
        "${install[@]}" --index-url "$TORCH_INDEX" "$TORCH" ||
            stop "no CPU build of $TORCH from $TORCH_INDEX: set TORCH_INDEX to an index or a folder that has one"
    fi
fi
for file in "$half/here.txt" "$@"; do
    "${install[@]}" -r "$file" || stop "pip could not install these packages $failed"
done
wait $! || stop "pip could not install these packages $failed"
"${pip[@]}" install -qq --no-deps --no-build-isolation --editable .
wanted >"$(stamp)"
wanted "$@" >"$(stamp "$@")"
echo "setup: done"
