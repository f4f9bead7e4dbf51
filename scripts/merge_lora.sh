#!/usr/bin/env bash
# OmniAvatar's adapter into its base: bash scripts/merge_lora.sh [--size 1.3b|14b] [--base P] [--lora P] [--out P] [--dry-run]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/merge_lora.py" "$@"
