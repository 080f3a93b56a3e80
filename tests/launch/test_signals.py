"""Requests to stop a run: signals and the time limit."""

import os
import signal
import subprocess
import sys
import time
import weakref

import pytest

from d2ext.errors import UserError
from d2ext.launch.signals import StopSignals, deadline
from tests.conftest import checkout_env


@pytest.mark.parametrize(
    ("text", "seconds"), [("3h50m", 13800), ("90s", 90), ("1d2h", 93600), ("3.5h", 12600)]
)
def test_time_limits_are_parsed(text, seconds):
    assert deadline(text, since=5.0) == 5.0 + seconds


@pytest.mark.parametrize("text", ["", "0m", "50", "1m3h", "3,5h", "-1h", "soon"])
def test_invalid_time_limits_are_errors(text):
    with pytest.raises(UserError, match="--time-limit .*3h50m"):
        deadline(text, since=0.0)


def test_the_time_limit_and_a_signal():
    with StopSignals(time.monotonic() + 0.05) as signals:
        assert signals.received is None
        time.sleep(0.06)
        assert signals.received == "--time-limit"
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received == "SIGUSR1"
    assert deadline(None, 0.0) is None


def test_nothing_refers_to_a_finished_run():
    """Python keeps what it calls after a fork for as long as the process lives."""
    with StopSignals() as signals:
        pass
    ended = weakref.ref(signals)
    del signals
    assert ended() is None


POOL = """
import multiprocessing
from d2ext.launch.signals import StopSignals

with StopSignals(), multiprocessing.get_context("fork").Pool(2) as pool:
    print(sum(pool.map(abs, range(-5, 0))))
"""


def test_a_process_pool_ends():
    """Detectron2 reads Cityscapes in a pool, and ends it with SIGTERM."""
    done = subprocess.run(
        [sys.executable, "-c", POOL], env=checkout_env(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout == "15\n", done.stderr


HANGS = """
import signal, time
from torch.utils.data import DataLoader, Dataset
from d2ext.data.loading.loader import Loader, _init_worker
from d2ext.launch.signals import StopSignals

class Slow(Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): print("hangs", flush=True); time.sleep(1000)

with StopSignals():
    for batch in Loader(DataLoader(Slow(), num_workers=2, worker_init_fn=_init_worker)):
        pass
"""


def test_a_second_ctrl_c_does_not_wait_for_a_loader_that_hangs():
    with subprocess.Popen(
        [sys.executable, "-c", HANGS],
        env=checkout_env(),
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)  # workers ignore it
        time.sleep(0.5)
        assert process.poll() is None
        start = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) == 130 and time.monotonic() - start < 4


DEAF = """
import os, signal, sys, time
from pathlib import Path
from d2ext.launch.topology import find_topology
from d2ext.launch.spawn import start_ranks
from d2ext.launch.signals import StopSignals

def deaf():
    with StopSignals():
        signal.raise_signal(signal.SIGINT)
        while True:
            try:
                signal.raise_signal(signal.SIGINT)
                time.sleep(1000)
            except KeyboardInterrupt:  # as in an interrupted destructor
                pass

if __name__ == "__main__":
    layout = find_topology({}, num_gpus=2)
    sys.exit(start_ranks(layout, deaf, (), 30, "cpu", Path("run")))
"""


@pytest.mark.slow
def test_ranks_that_ignore_a_second_ctrl_c_end_in_two_seconds(tmp_path):
    (tmp_path / "deaf.py").write_text(DEAF)
    done = subprocess.run(
        [sys.executable, "deaf.py"],
        env=checkout_env(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (130, ["interrupted"]), done
