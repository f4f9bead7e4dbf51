#!/usr/bin/env bash
# What choices of the recipe are worth: bash scripts/ablate.sh [--config FILE] [--dry-run] [--help] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/ablate.py" "$@"
