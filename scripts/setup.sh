# Sourced by the other scripts: `ready run` or `ready dev` makes or renews .venv when it has to.
#
# The warm path starts no process. A stamp, .venv/.ready-run or .venv/.ready-dev, says where the
# checkout stood and what it asked for, and it is newer than the files that ask.
# shellcheck shell=bash

root=${BASH_SOURCE[0]%/*}/..
venv=$root/.venv

say() { printf 'fastsync: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 2
}

# Does stamp $1 hold for this checkout? A copied or moved .venv still points at the old place.
stamped_here() {
    local home=
    [[ -f $1 ]] && read -r home <"$1" && [[ $home -ef $root ]]
}

holds() {
    local stamp=$venv/.ready-$1
    [[ $stamp -nt $root/pyproject.toml && $stamp -nt $root/constraints.txt && -x $venv/bin/python ]] &&
        stamped_here "$stamp"
}

is_ready() { holds dev || { [[ $1 == run ]] && holds run; }; }

ready() {
    is_ready "$1" && return
    # Not in an || list: bash would ignore the `set -e` inside.
    (set_up "$1") </dev/null >&2
    local status=$?
    ((status == 0)) || exit "$status"
}

# Runs in a subshell, so that the lock on descriptor 9 ends with it however it ends.
set_up() {
    local kind=$1 stamp=$venv/.ready-$1 python target

    set -eu
    # Absolute from here on; what the caller has in its environment for other projects stays out.
    root=$(CDPATH='' cd -- "$root" && pwd -P)
    venv=$root/.venv stamp=$root/.venv/.ready-$kind
    unset PYTHONHOME PYTHONPATH PIP_CONSTRAINT PIP_REQUIRE_VIRTUALENV PIP_TARGET PIP_PREFIX
    export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

    python=$(find_python)
    lock "$python"
    if is_ready "$kind"; then
        return # another first run was faster
    fi

    local wanted
    wanted=$(printf '%s\n' "$root" && cd -- "$root" && cksum pyproject.toml constraints.txt)
    if stamped_here "$stamp" && [[ $(<"$stamp") == "$wanted" ]] && works; then
        touch "$stamp" # the files are newer, what they say is not
        return
    fi

    say "setting up $venv, this takes a moment"
    if stale || ! works; then
        "$python" -m venv --clear "$venv"
    fi
    # Written now and put in place at the end: an edit made meanwhile is newer than the stamp.
    printf '%s\n' "$wanted" >"$stamp.new"
    target=$root
    [[ $kind == run ]] || target="${root}[$kind]"
    # The build back-end comes first and is pinned too, so that a later renewal needs no network.
    pip_install hatchling editables
    pip_install --no-build-isolation --editable "$target"
    # An editable install leaves compiling to the first run, and for ever to every run where
    # PYTHONDONTWRITEBYTECODE is set.
    "$venv/bin/python" -m compileall -q "$root/fastsync" "$root/protocols"
    mv -f "$stamp.new" "$stamp"
}

pip_install() {
    "$venv/bin/python" -m pip install --quiet --constraint "$root/constraints.txt" "$@" ||
        die "could not install what $root/pyproject.toml asks for: see above (is the package index reachable?)"
}

works() { "$venv/bin/python" -m pip --version >/dev/null 2>&1; }

stale() {
    local stamp
    for stamp in "$venv"/.ready-*; do
        [[ ! -e $stamp ]] || stamped_here "$stamp" || return 0
    done
    return 1
}

# The kernel drops this lock when its last holder ends, even by SIGKILL. Python takes it because
# python3 is the one tool that must be here; the lock outlives it, as descriptor 9 is ours.
lock() {
    exec 9>>"$root/.venv.lock"
    "$1" - <<'PY'
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("fastsync: waiting for another set-up of this checkout", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
PY
}

find_python() {
    local candidates=(python3 python3.14 python3.13 python3.12 python3.11) candidate seen=
    [[ -z ${FASTSYNC_PYTHON-} ]] || candidates=("$FASTSYNC_PYTHON")
    for candidate in "${candidates[@]}"; do
        command -v -- "$candidate" >/dev/null || continue
        seen+=" $candidate"
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import ensurepip, venv' 2>/dev/null ||
                die "$candidate has no venv module (on Debian: apt install python3-venv)"
            command -v -- "$candidate"
            return
        fi
    done
    [[ -z ${FASTSYNC_PYTHON-} ]] || die "FASTSYNC_PYTHON=$FASTSYNC_PYTHON is no Python 3.11 or newer"
    die "no Python 3.11 or newer on PATH (tried:${seen:- none}); FASTSYNC_PYTHON may name one"
}
