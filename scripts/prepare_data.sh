#!/usr/bin/env bash
# Clips out of people's own videos: bash scripts/prepare_data.sh FOLDER [--config FILE] [--dry-run] [--help] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/prepare_data.py" "$@"
