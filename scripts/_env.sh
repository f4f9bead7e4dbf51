# Sourced by every command: sets ROOT and PYTHON, and makes the environment ready. It is not run by itself.
#
# An active environment (VIRTUAL_ENV or CONDA_PREFIX) is used as it is and completed; otherwise .venv is made. A stamp
# inside the environment makes every later call skip all of this while requirements.txt, setup.py and this file stay
# the same. Settings, all optional:
#   LIVETALK_TORCH_INDEX  package index for torch alone, e.g. PyTorch's CPU builds (see README.md)
#   LIVETALK_PYTHON       use this interpreter with what it has: nothing is installed

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
LIVETALK_TORCH="2.13.0"

# Threads that wait for each other in small matrices spin, by default so long that beside one busy process a nano clip
# takes 46 s on two cores, where it takes 1.4 alone. With this short spin it takes 5 s, and 1.6 alone; no frame changes.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-6000}"

_fail() { printf "set-up: %s\n" "$*" >&2; exit 2; }
_say() { printf 'set-up: %s\n' "$*"; }

# Whether "$1" runs, is Python 3.11 or newer, and can make environments.
_suits() { "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

_make_venv() {
  local candidate found=""
  for candidate in python3 python python3.12 python3.11 python3.13; do
    if _suits "$candidate"; then
      _say "making .venv with $("$candidate" --version 2>&1)"
      "$candidate" -m venv --clear "$ROOT/.venv" || _fail "python -m venv failed for $ROOT/.venv (disk full or no rights?)"
      return
    fi
    if command -v "$candidate" >/dev/null 2>&1; then found="$found $candidate ($("$candidate" --version 2>&1 | tail -n 1))"; fi
  done
  if [ -z "$found" ]; then _fail "no Python found: install Python 3.11 or 3.12 and try again"; fi
  _fail "Python 3.11 or newer with its venv module is needed, found only:$found. Install python3.12 and python3.12-venv, or activate a conda environment"
}

# Runs pip quietly; on failure shows the end of its log.
_pip() {
  local log="$_prefix/livetalk-setup.log"
  if ! "$PYTHON" -m pip --disable-pip-version-check --no-input install --progress-bar off "$@" >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    _fail "pip could not install ($*). The whole log: $log"
  fi
}

_has_torch() {
  "$PYTHON" - <<'PY' >/dev/null 2>&1
from importlib.metadata import version
raise SystemExit(tuple(map(int, version("torch").split("+")[0].split(".")[:2])) < (2, 11))
PY
}

_install() {
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || _fail "$PYTHON is older than Python 3.11: activate a newer environment"
  "$PYTHON" -m pip --version >/dev/null 2>&1 || _fail "$PYTHON has no pip: run '$PYTHON -m ensurepip', or deactivate this environment to let .venv be made"
  # First and pinned, because a bare "torch" wanted by another package may pull in another build.
  if ! _has_torch; then
    _say "installing torch $LIVETALK_TORCH (the large one; minutes)"
    if [ -n "${LIVETALK_TORCH_INDEX:-}" ]; then
      _pip "torch==$LIVETALK_TORCH" --index-url "$LIVETALK_TORCH_INDEX"
    else
      _pip "torch==$LIVETALK_TORCH"
    fi
  fi
  _say "installing livetalk and what its tests need (a minute or two)"
  _pip -e "$ROOT[data,realtime,dev]"
  _say "done in $((SECONDS - _began)) s"
}

# Whether the environment is as it has to be; sets PYTHON, and what _prepare goes by.
_ready() {
  _prefix="${VIRTUAL_ENV:-${CONDA_PREFIX:-$ROOT/.venv}}"
  PYTHON="$_prefix/bin/python"
  stamp="$_prefix/.livetalk-stamp"
  wanted="$ROOT $PYTHON $(cat "$ROOT/requirements.txt" "$ROOT/setup.py" "$ROOT/scripts/_env.sh" | cksum)"
  [ -x "$PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]
}

_prepare() {
  local _began=$SECONDS
  if _ready; then return; fi
  if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && ! { [ -x "$PYTHON" ] && _suits "$PYTHON"; }; then _make_venv; fi
  [ -x "$PYTHON" ] || _fail "the active environment $_prefix has no bin/python: deactivate it, or make it again"
  _install
  printf '%s\n' "$wanted" >"$stamp"
}

if [ -n "${LIVETALK_PYTHON:-}" ]; then
  PYTHON="$LIVETALK_PYTHON"
  command -v "$PYTHON" >/dev/null 2>&1 || _fail "LIVETALK_PYTHON=$PYTHON is no interpreter: name one, or leave it out"
  export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
elif ! _ready; then # a checkout that is ready is not written to
  # Two commands started at once take turns instead of installing over each other.
  if command -v flock >/dev/null 2>&1; then
    { mkdir -p "$ROOT/.cache" && : >>"$ROOT/.cache/setup.lock"; } 2>/dev/null || _fail "$ROOT cannot be written to: set up here first, or activate an environment"
    exec 9>"$ROOT/.cache/setup.lock"
    flock 9
    _prepare
    exec 9>&-
  else
    _prepare
  fi
fi
