#!/usr/bin/env bash
# Starts a Slurm, runs the tests of this folder on it, stops it: run.sh PYTHON [pytest's arguments]
# Where it cannot (no root, no Debian, no packages), it says so, and pytest skips them.
set -u
here=$(cd "$(dirname "$0")" && pwd) python=$1
shift
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    dir=$(mktemp -d /tmp/slurm.XXXX) # short: unix sockets live in it
    trap '"$here/slurm_cluster.sh" stop "$dir"; rm -rf "$dir"' EXIT
    trap 'exit 143' TERM INT HUP
    chmod 755 "$dir"                  # munge wants that
    if "$here/slurm_cluster.sh" install; then
        "$here/slurm_cluster.sh" start "$dir" || exit 1
        export D2EXT_TEST_SLURM=$dir
    fi
else
    echo "tests/slurm: a Slurm is started as root on Debian only"
fi
# What runs behind a script ignores INT; pytest is to hear it, and to end what it has started.
env --default-signal=INT "$python" -m pytest "$here/test_training.py" "$@" &
pytest=$!
trap 'kill -INT $pytest; wait $pytest; exit 143' TERM INT HUP
wait $pytest
