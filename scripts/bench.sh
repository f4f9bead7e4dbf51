#!/usr/bin/env bash
# Frames a second of a live stream on this machine: bash scripts/bench.sh [--config FILE] [--dry-run] [--help] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/bench.py" "$@"
