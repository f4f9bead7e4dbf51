#!/usr/bin/env bash
# One file of published weights from a checkpoint of a training: bash scripts/export.sh [--config FILE] [--dry-run] [--help] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/export.py" "$@"
