#!/usr/bin/env bash
# An avatar for rooms of LiveKit: bash scripts/livekit_agent.sh [--config FILE] [--dry-run] [--help] [key=value ...]
# Needs the extra packages of `pip install -e '.[livekit]'` and a LiveKit server; docs/livekit.md tells the rest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/livekit_agent.py" "$@"
