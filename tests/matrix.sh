#!/usr/bin/env bash
# Run the fast tier with the oldest and the newest torch that setup.py admits, on every Python that
# is installed: matrix.sh FOLDER [pytest's arguments]
#
# Each combination has its own environment in FOLDER (6 GB each), which later calls reuse. Warnings
# are not errors here: other versions warn differently. Prints one line for each combination, and
# exits with 1 if any of them failed.
set -u
cd "$(dirname "$0")/.."
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
oldest="torch==2.6.0 torchvision==0.21.0" # the lower bounds in setup.py
newest="torch torchvision"
results=()
failed=0

for version in 3.11 3.12 3.13 3.14; do
    if ! command -v "python$version" >/dev/null; then
        results+=("Python $version: not installed, untested")
        continue
    fi
    for kind in oldest newest; do
        venv=$folder/python$version-$kind
        echo "== Python $version, $kind torch"
        if ! D2EXT_VENV=$venv PYTHON=python$version make --silent env >"$venv.log" 2>&1 ||
            # The pinned torch is replaced; `--upgrade` also replaces the CUDA packages it needs.
            ! "$venv/bin/python" -m pip install --quiet --upgrade ${!kind} >>"$venv.log" 2>&1; then
            results+=("Python $version, $kind torch: cannot be installed, see $venv.log")
            failed=1
            continue
        fi
        OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest --numprocesses logical --maxprocesses 4 \
            --dist worksteal -W default -m "not slow and not browser and not nightly" "$@" 2>&1 | tee "$venv.out"
        [ "${PIPESTATUS[0]}" = 0 ] || failed=1
        found=$("$venv/bin/python" -c 'import platform, torch, torchvision
print(f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}")')
        results+=("$found: $(tail -n1 "$venv.out" | tr -d =)")
    done
done
printf '%s\n' "" "$(date +%F)" "${results[@]}"
exit $failed
