#!/usr/bin/env bash
# The bidirectional teacher: bash scripts/train_teacher.sh [--config FILE] [--dry-run] [--help] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/train_teacher.py" "$@"
