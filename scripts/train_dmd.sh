#!/usr/bin/env bash
# The causal student, by Self-Forcing distribution matching: bash scripts/train_dmd.sh [--config FILE] [--dry-run] [--help] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/train_dmd.py" "$@"
