#!/usr/bin/env bash
# Sample clips of the synthetic world: bash scripts/make_world.sh [--config FILE] [--dry-run] [--help] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/make_world.py" "$@"
