#!/usr/bin/env bash
# The figures of a family of weights: bash scripts/evaluate.sh [--config FILE] [--dry-run] [--help] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/evaluate.py" "$@"
