#!/usr/bin/env bash
# Set-up, then the tests: bash scripts/test.sh [--all] [pytest arguments ...]
# Without --all: the fast tier. --all adds slow, browser, ray and livekit, and what a GPU or published weights allow.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
cd "$ROOT"

all=""
rest=()
for argument in "$@"; do
  case "$argument" in
    --all) all=yes ;;
    --help | -h) sed -n '2,3s/^# //p' "$ROOT/scripts/test.sh"; exit 0 ;;
    *) rest+=("$argument") ;;
  esac
done

skip="not gpu"
if nvidia-smi -L >/dev/null 2>&1; then skip="(gpu or not gpu)"; fi
if ! ls pretrained_checkpoints/*/ >/dev/null 2>&1; then skip="$skip and not weights"; fi
# What only these tests need; an interpreter that was named is left as it is.
if [ -n "$all" ] && [ -z "${LIVETALK_PYTHON:-}" ] && ! "$PYTHON" -c "import livekit.agents, ray.serve" 2>/dev/null; then
  "$PYTHON" -m pip --disable-pip-version-check --no-input install -q -e "$ROOT[livekit,ray]"
fi
if [ -z "$all" ]; then skip="not slow and not gpu and not weights and not browser and not ray and not livekit"; fi

# A process a core, each computing in one thread, and every file in one of them. -n0 among the arguments undoes it.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$PYTHON" -m pytest -q -n auto --maxprocesses 8 --dist loadfile -m "$skip" ${rest[@]+"${rest[@]}"}
