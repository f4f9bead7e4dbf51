#!/usr/bin/env bash
# What must hold before a change lands, the same by hand, in pre-commit and in CI: style, then the fast tests.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
cd "$ROOT"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec bash scripts/test.sh "$@"
