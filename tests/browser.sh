#!/usr/bin/env bash
# Install chromium if it is missing, and run the tests of pages in it: browser.sh PYTHON [...]
# Installation is required to succeed as root on Debian; elsewhere, pytest skips the tests.
set -u
here=$(cd "$(dirname "$0")" && pwd) python=$1
shift
if ! command -v chromium chromium-browser google-chrome >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update && apt-get install -y --no-install-recommends chromium; } >/dev/null ||
            { echo "tests: apt-get cannot install chromium" && exit 1; }
    else
        echo "tests: chromium can be installed only as root on Debian"
    fi
fi
exec "$python" -m pytest "$here/report/test_browser.py" "$here"/export/test_page_{browser,controls}.py "$@"
