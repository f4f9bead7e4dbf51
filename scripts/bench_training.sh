#!/usr/bin/env bash
# Seconds a training step at the published sizes, and where they go: bash scripts/bench_training.sh [--config FILE] [--dry-run] [--help] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/bench_training.py" "$@"
