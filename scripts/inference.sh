#!/usr/bin/env bash
# A picture and a voice to a talking video: bash scripts/inference.sh [--config FILE] [--dry-run] [--help] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/inference.py" "$@"
