"""Which of several ranks' errors is the cause, and how it is reported."""

import errno
import os
import subprocess
import sys
import time

import pytest
import torch.distributed as dist

from d2ext.errors import UserError
from d2ext.launch.failures import (
    FailureFolder,
    cause,
    describe_failure,
    describe_killed,
    print_failure,
)
from d2ext.run_dir.schema import RankFailure, read_record
from tests.conftest import checkout_env

LOST = dist.DistError("Connection closed by peer")


def test_the_first_cause_wins_over_lost_peers():
    lost, own = describe_failure(0, LOST), describe_failure(2, ValueError("x"))
    later, stopped = describe_failure(3, UserError("y")), describe_failure(1, KeyboardInterrupt())
    assert cause([lost, stopped, later, own]) is own
    assert cause([lost, stopped]) is stopped
    assert cause([lost]) is lost
    assert cause([]) is None


def test_crashes_after_an_interruption_are_not_the_cause():
    """Pressing Ctrl-C twice ends a rank immediately, so its peers may crash or be killed."""
    lost, stopped = describe_failure(0, LOST), describe_failure(1, KeyboardInterrupt())
    assert cause([lost, describe_killed(0, "SIGABRT"), stopped]) is stopped
    try:
        try:
            raise KeyboardInterrupt
        finally:
            raise SystemError("returned a result with an exception set")
    except SystemError as e:
        assert describe_failure(0, e).kind == "interrupted"


@pytest.mark.parametrize(
    ("by", "kind"), [(None, "killed"), ("SIGKILL", "killed"), ("SIGSEGV", "crashed")]
)
def test_crashes_are_distinguished_from_kills(by, kind):
    """A job that crashed would crash again; one that was killed is requeued."""
    killed = describe_killed(1, by)
    assert killed.kind == kind and cause([describe_failure(0, LOST), killed]) is killed


ABORTING = """
import os, sys, time
from pathlib import Path

import torch.distributed as dist
from d2ext.launch.spawn import start_ranks
from d2ext.launch.topology import find_topology

def work():
    if dist.get_rank() == 1:
        os.abort()
    time.sleep(60)

if __name__ == "__main__":
    Path("run").mkdir()
    sys.exit(start_ranks(find_topology({}, num_gpus=2), work, (), 60, "cuda", Path("run")))
"""


@pytest.mark.slow
def test_an_abort_on_gpus_is_a_lost_peer(tmp_path):
    """NCCL's watchdog aborts the ranks whose peer has died; their job is requeued."""
    (tmp_path / "ranks.py").write_text(ABORTING)
    done = subprocess.run(
        [sys.executable, "ranks.py"],
        env=checkout_env() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "SIGABRT" in last and "CUDA error on this rank" in last
    failure = read_record(tmp_path / "run" / "errors" / "rank-1.json", RankFailure)
    assert failure.kind == "communication"
    assert describe_killed(1, "SIGABRT").kind == "crashed"  # on the CPU


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("no such file"), "user"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "log.txt"), "user"),
        (OSError(errno.ENOENT, "absent"), "other"),
        (KeyboardInterrupt(), "interrupted"),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection reset by peer"), "communication"),
        (RuntimeError("a storage of the wrong size, no socket"), "other"),
        (dist.DistBackendError("NCCL error\nLast error:\nCuda failure 2 'out of memory'"), "other"),
    ],
)
def test_the_kind_of_a_failure(error, kind):
    assert describe_failure(0, error).kind == kind


@pytest.mark.parametrize(
    ("error", "status", "last"),
    [
        (UserError("fix it"), 2, ": fix it"),
        (ValueError("bad"), 1, ": ValueError: bad"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_the_last_line_and_the_status(capsys, error, status, last):
    assert print_failure(describe_failure(5, error)) == status
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(last) and (status == 130 or line.startswith("error: rank 5 on "))


def test_only_new_failures_count(tmp_path):
    """This also holds if another machine's clock is slow."""
    FailureFolder(tmp_path).add(describe_failure(1, ValueError("in the previous run")))
    folder = FailureFolder(tmp_path)
    assert folder.new() == []
    folder.add(describe_failure(1, ValueError("in this run")))
    os.utime(tmp_path / "errors" / "rank-1.json", (1e9, 1e9))
    assert [f.message for f in folder.new()] == ["ValueError: in this run"]


def test_a_lost_peer_error_waits_for_the_cause(tmp_path):
    folder = FailureFolder(tmp_path)
    mine = describe_failure(0, LOST)
    assert folder.wait_for_cause(mine, seconds=0.1) is mine
    folder.add(describe_failure(1, ValueError("why")))
    start = time.monotonic()
    assert folder.wait_for_cause(mine, seconds=60).message == "ValueError: why"
    assert time.monotonic() - start < 30


def test_without_a_run_directory_nothing_is_created(tmp_path):
    folder = FailureFolder(tmp_path / "run")
    folder.add(describe_failure(0, LOST))
    assert folder.new() == [] and not (tmp_path / "run").exists()


def test_recording_a_failure_without_open_files(tmp_path):
    """A second error must not replace the first one."""
    code = f"""
import resource
from pathlib import Path
from d2ext.launch.failures import record_failure
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
record_failure(Path({str(tmp_path)!r}), "the cause")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=checkout_env(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "warning: cannot record the failure" in done.stderr
