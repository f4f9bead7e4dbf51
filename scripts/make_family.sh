#!/usr/bin/env bash
# The published files as a family to train: bash scripts/make_family.sh [--config FILE] [--dry-run] [--help] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/make_family.py" "$@"
