#!/usr/bin/env bash
# A page where one talks to an avatar: bash scripts/serve.sh [--config FILE] [--dry-run] [--help] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/serve.py" "$@"
