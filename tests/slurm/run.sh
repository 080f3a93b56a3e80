#!/usr/bin/env bash
# Start a Slurm cluster, run the tests of this folder on it, and stop it: run.sh PYTHON [arguments]
# If that is impossible (no root, no Debian, no packages), print that and let pytest skip the tests.
set -u
here=$(cd "$(dirname "$0")" && pwd) python=$1
shift
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    dir=$(mktemp -d /tmp/slurm.XXXX) # a short path, because it contains unix sockets
    trap '"$here/slurm_cluster.sh" stop "$dir"; rm -rf "$dir"' EXIT
    trap 'exit 143' TERM INT HUP
    chmod 755 "$dir"                  # munge requires that
    if "$here/slurm_cluster.sh" install; then
        "$here/slurm_cluster.sh" start "$dir" || exit 1
        export D2EXT_TEST_SLURM=$dir
    fi
else
    echo "tests/slurm: Slurm can be started only as root on Debian"
fi
# Background processes of a script ignore INT, but pytest must receive it to stop what it started.
env --default-signal=INT "$python" -m pytest "$here/test_training.py" "$@" &
pytest=$!
trap 'kill -INT $pytest; wait $pytest; exit 143' TERM INT HUP
wait $pytest
