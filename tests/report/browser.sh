#!/usr/bin/env bash
# Installs chromium where there is none, and runs the report's tests in it: browser.sh PYTHON [...]
# As root on Debian that must succeed; elsewhere it says so, and pytest skips them.
set -u
here=$(cd "$(dirname "$0")" && pwd) python=$1
shift
if ! command -v chromium chromium-browser google-chrome >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update && apt-get install -y --no-install-recommends chromium; } >/dev/null ||
            { echo "tests/report: apt-get cannot install chromium" && exit 1; }
    else
        echo "tests/report: chromium is installed as root on Debian only"
    fi
fi
exec "$python" -m pytest "$here/test_browser.py" "$@"
