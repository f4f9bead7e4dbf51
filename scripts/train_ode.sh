#!/usr/bin/env bash
# The causal student's start, by regression on ODE pairs: bash scripts/train_ode.sh [--config FILE] [--dry-run] [--help] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/train_ode.py" "$@"
