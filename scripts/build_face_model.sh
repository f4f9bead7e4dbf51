#!/usr/bin/env bash
# Pack a clone of the public ICT-FaceKit repository: bash scripts/build_face_model.sh CLONE OUTPUT [--help]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
exec "$PYTHON" "$ROOT/scripts/build_face_model.py" "$@"
