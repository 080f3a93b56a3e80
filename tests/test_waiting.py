"""Long waits are announced; `DELAY` is shortened here."""

import http.server
import os
import subprocess
import sys
import threading
import time

import pytest

from d2ext import waiting
from d2ext.checkpoint.hook import _Writer
from d2ext.data.prepare.download import download
from d2ext.data.records.cache import cached_records
from d2ext.errors import UserError
from d2ext.launch import topology
from d2ext.run_dir import lock
from d2ext.slurm import queue
from d2ext.waiting import interruptible, is_interruptible, waiting_for


@pytest.fixture(autouse=True)
def _short(monkeypatch, caplog):
    monkeypatch.setattr(waiting, "DELAY", 0.2)
    caplog.set_level("WARNING", logger="d2ext.waiting")


def _said(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "d2ext.waiting"]


def test_a_long_wait_is_announced_once_and_a_short_one_is_not(caplog):
    with waiting_for("the short one"):
        pass
    with waiting_for("the long one", "SIGTERM gives up"):
        time.sleep(0.6)
    assert _said(caplog) == ["still waiting for the long one after 0.2 s; SIGTERM gives up"]


def test_a_wait_may_have_begun_earlier_or_be_over_already(caplog):
    said = []
    with waiting_for("an early start", since=time.monotonic() - 100, say=said.append):
        time.sleep(0.1)
    with waiting_for("nothing", needed=lambda: False, say=said.append):
        time.sleep(0.4)
    assert len(said) == 1 and not _said(caplog)


def test_no_thread_is_left_after_a_wait():
    for seconds in (0, 0, 0, 0.3):
        with waiting_for("something"):
            time.sleep(seconds)
        assert not [t for t in threading.enumerate() if isinstance(t, threading.Timer)]


def test_a_wait_without_memory_for_a_thread_is_silent(monkeypatch):
    def fail(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with waiting_for("something"):
        pass


def test_waits_for_data_are_marked():
    assert not is_interruptible()
    with interruptible(), interruptible():
        assert is_interruptible()
    with pytest.raises(StopIteration), interruptible():
        next(iter([]))
    assert not is_interruptible()


@pytest.fixture
def held(tmp_path):
    """Return a function that has another process lock a file for a while."""
    holders = []

    def hold(file):
        code = f"import fcntl, time; f = open({str(file)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX)"
        code += "; print('held', flush=True); time.sleep(0.8)"
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "held\n"
        holders.append(process)

    yield hold
    for process in holders:
        process.communicate()


def test_a_wait_for_another_run_in_the_directory(tmp_path, held, caplog):
    held(tmp_path / ".lock")
    lock.wait_until_free(tmp_path)
    lock.release_output_dir()
    assert [text for text in _said(caplog) if f"another process to release {tmp_path}" in text]


def test_a_wait_for_another_process_that_reads_the_same_file(tmp_path, monkeypatch, held, caplog):
    monkeypatch.setenv("D2EXT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.json").write_text("{}")
    cached_records(tmp_path / "a.json", {"reader": "this"}, lambda: ([], {}))
    (lock,) = (tmp_path / "cache" / "datasets").glob("*.lock")
    (lock.with_suffix(".json")).unlink()
    held(lock)
    cached_records(tmp_path / "a.json", {"reader": "this"}, lambda: ([], {}))
    assert any("which is reading" in text and "a.json" in text for text in _said(caplog))


def test_a_wait_for_a_slow_server(tmp_path, caplog):
    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(0.6)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ab")

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Slow) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/weights.pth"
        download(url, tmp_path / "a")
        thread.join()
    assert (tmp_path / "a").read_bytes() == b"ab"
    assert any(f"the download of {url}" in text for text in _said(caplog))


def test_a_wait_for_machine_0(caplog):
    layout = topology.Topology("self", 2, 1, 1, f"tcp://127.0.0.1:{topology.free_port()}", 1)
    with pytest.raises(UserError, match="machine 0 was not reached"):
        topology.check_rendezvous(layout, timeout=0.6)
    assert any(f"machine 0 at {layout.url}" in text for text in _said(caplog))


def test_a_wait_for_a_checkpoint_that_is_being_written(caplog):
    writer = _Writer()
    writer.start(lambda: time.sleep(0.6))
    assert writer.end() is None
    assert any("the checkpoint that is being written" in text for text in _said(caplog))


def test_a_wait_for_slurm(tmp_path, monkeypatch, caplog):
    command = tmp_path / "squeue"
    command.write_text("#!/bin/sh\nsleep 0.6\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert queue.living_jobs() == {}
    assert any("squeue to answer" in text for text in _said(caplog))


RANKS = """
import sys, time
from pathlib import Path
import d2ext.waiting
from d2ext.launch.collectives import broadcast_from_rank0
from d2ext.launch.topology import Topology
from d2ext.launch.spawn import start_ranks

d2ext.waiting.DELAY = 0.5

def main():
    import torch.distributed as dist
    from detectron2.utils import comm
    broadcast_from_rank0(lambda: time.sleep(1.5))
    time.sleep(1.5 * (comm.get_rank() == 0))
    return 0

if __name__ == "__main__":
    sys.exit(start_ranks(LAYOUT, main, (), 60, "cpu", Path("run")))
"""


@pytest.mark.slow
def test_ranks_that_wait_for_others(repo, tmp_path):
    """As with torchrun on two machines of one process, the second one waits for the first."""
    port, processes = topology.free_port(), []
    errors = [tmp_path / f"rank{rank}.err" for rank in (0, 1)]
    meeting = "all 2 processes to start and meet at tcp://127.0.0.1"
    for rank in (0, 1):
        layout = f"Topology('torchrun', 2, {rank}, 1, 'tcp://127.0.0.1:{port}', {rank})"
        (tmp_path / f"rank{rank}.py").write_text(RANKS.replace("LAYOUT", layout))
        env = {**os.environ, "PYTHONPATH": str(repo), "MASTER_ADDR": "127.0.0.1"}
        env |= {"MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
        with errors[rank].open("w") as stderr:
            command = [sys.executable, f"rank{rank}.py"]
            processes.append(subprocess.Popen(command, cwd=tmp_path, env=env, stderr=stderr))
        # Rank 1 starts only after rank 0 has announced its wait.
        end = time.monotonic() + 120
        while rank == 0 and meeting not in errors[0].read_text() and time.monotonic() < end:
            time.sleep(0.1)
    statuses = [process.wait(timeout=120) for process in processes]
    said = [path.read_text() for path in errors]
    assert statuses == [0, 0], said
    assert meeting in said[0]
    assert "still waiting for rank 0" in said[1]
    assert "the other ranks to end" in said[1]
