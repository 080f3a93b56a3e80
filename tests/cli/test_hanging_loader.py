"""A run whose data loader hangs prints a warning and still stops on a signal."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import LITE0, REPO

# From some sample on, this mapper hangs as if its file server did not answer.
MAPPER = """
import os, time
from d2ext.data.loading.mapper import Mapper
import d2ext.launch.signals, d2ext.waiting

d2ext.launch.signals.GRACE = 0.5
d2ext.waiting.DELAY = 1.5

class Hangs(Mapper):
    calls = 0

    def __call__(self, record):
        Hangs.calls += 1
        if Hangs.calls > int(os.environ["HANGS_AFTER"]):
            open(os.environ["HANGS_AT"], "w").close()
            time.sleep(1000)
        return super().__call__(record)
"""
WAITS = "still waiting for the loader workers' next batch"


def _start(tiny, folder, after, *options):
    (folder / "hanging.py").write_text(MAPPER)
    command = [sys.executable, REPO / "tools/train_net.py", "--config-file", REPO / LITE0]
    command += ["--no-validate", "--work-dir", folder / "run", *tiny, "train.max_iter=100"]
    command += ["dataloader.train.mapper._target_=hanging.Hangs", *options]
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    env |= {"HANGS_AFTER": str(after), "HANGS_AT": str(folder / "hangs")}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _wait_for(file, process):
    _wait_until(file.exists, process, file)


def _wait_until(condition, process, what):
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    pytest.fail(f"{what} did not appear")


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.nightly), 2])
def test_a_run_whose_loader_hangs_can_be_stopped_and_is_saved(tiny, tmp_path, workers):
    process = _start(tiny, tmp_path, 4, f"dataloader.train.num_workers={workers}")
    _wait_for(tmp_path / "hangs", process)
    if workers:  # the warning follows the steps that had data
        log = tmp_path / "run" / "log.txt"
        _wait_until(lambda: WAITS in log.read_text(), process, f"{WAITS!r} in {log}")
    else:
        time.sleep(3.0)
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    assert time.monotonic() - start < 15
    assert "Stopped by SIGTERM and saved" in out and "Traceback" not in err
    assert (WAITS in out) == bool(workers)
    saved = (tmp_path / "run" / "last_checkpoint").read_text()
    assert (tmp_path / "run" / saved).is_file()
    last = (tmp_path / "run" / "metrics.json").read_text().splitlines()[-1]
    assert saved == f"model_{json.loads(last)['iteration']:07d}.pth" or saved.startswith("epoch")


def test_a_run_that_never_got_a_batch_can_be_stopped(tiny, tmp_path):
    # The preflight checks use up the first sample.
    process = _start(tiny, tmp_path, 1, "dataloader.train.num_workers=1")
    _wait_for(tmp_path / "hangs", process)
    _wait_for(tmp_path / "run" / "config.yaml", process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    assert "Stopped by SIGTERM before the first step" in out
    assert not list((tmp_path / "run").glob("*.pth"))
