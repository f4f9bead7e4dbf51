#!/usr/bin/env bash
# Frames a second of a live stream on this machine: bash scripts/bench.sh [--config FILE] [--dry-run] [--help] [key=value ...]
# --preset, --resolution, --device and --live may also be written as options.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
arguments=()
while (($#)); do
  case $1 in
    --preset | --resolution | --device)
      [[ $# -gt 1 ]] || { echo "bench: $1 has no value: write for example $1 VALUE" >&2; exit 2; }
      arguments+=("${1#--}=$2"); shift ;;
    --live) arguments+=("live=true") ;;
    --preset=* | --resolution=* | --device=*) arguments+=("${1#--}") ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
exec "$PYTHON" "$ROOT/scripts/bench.py" ${arguments[@]+"${arguments[@]}"}
