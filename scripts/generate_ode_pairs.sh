#!/usr/bin/env bash
# The teacher's trajectories for the student's start: bash scripts/generate_ode_pairs.sh [--config FILE] [--dry-run] [--help] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/generate_ode_pairs.py" "$@"
