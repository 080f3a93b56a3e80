"""Training on a real terminal shows a live panel instead of lines, and a summary box."""

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

LITE0 = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
_COLOR = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-7]|38|9[0-7])(?:;[0-9]+)*m")


def on_a_terminal(command, env):
    """Run a command on a terminal and return its output and its exit status."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=env, close_fds=True
    )
    os.close(slave)
    received, deadline = b"", time.monotonic() + 240
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.2)[0]:
            try:
                part = os.read(master, 1 << 16)
            except OSError:  # EIO: no process has it open any more
                break
            if not part:
                break
            received += part
    os.close(master)
    return received.decode(errors="replace"), process.wait(10)


@pytest.mark.parametrize("no_color", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_training_on_a_terminal_shows_a_panel(repo, tiny, tmp_path, no_color):
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    env |= {"TERM": "xterm-256color", "COLUMNS": "100"} | ({"NO_COLOR": "1"} if no_color else {})
    command = [sys.executable, "-W", "ignore", str(repo / "tools/train_net.py")]
    command += ["--work-dir", str(tmp_path), "--config-file", str(repo / LITE0)]
    shown, status = on_a_terminal([*command, "--options", *tiny, "train.max_iter=8"], env)
    assert status == 0, shown
    assert re.search(r"iteration 8 of 8 +ETA 0:00:00", shown), shown
    assert "evaluating" in shown and "memory" in shown and "╭─ Finished" in shown
    assert bool(_COLOR.search(shown)) != no_color
    # The cursor is shown again at the end.
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    # The loss lines go only to the log file.
    assert "total_loss:" not in shown and "total_loss:" in (tmp_path / "log.txt").read_text()
