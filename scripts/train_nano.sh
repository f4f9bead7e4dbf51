#!/usr/bin/env bash
# The frozen parts of the nano family: bash scripts/train_nano.sh [--config FILE] [--dry-run] [--help] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/train_nano.py" "$@"
