#!/usr/bin/env bash
# The page from several GPUs: bash scripts/serve_fleet.sh [--config FILE] [--dry-run] [--help] [key=value ...]
# With Ray Serve (pip install -e '.[realtime,ray]') or in front of servers that run already; docs/scaling.md tells more.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/serve_fleet.py" "$@"
