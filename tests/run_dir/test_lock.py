"""Locking of the output directory of a run."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from d2ext.errors import UserError
from d2ext.run_dir import lock
from d2ext.run_dir.lock import make_output_dir, refuse_moving, wait_until_free
from tests.conftest import checkout_env


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds the run directory `tmp_path / "run"` and has forked a child."""
    code = (
        "import os, pathlib, sys, time\n"
        "from d2ext.run_dir.lock import make_output_dir\n"
        "make_output_dir(pathlib.Path(sys.argv[1]), overwrite=False)\n"
        "if (child := os.fork()): print(child, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, tmp_path / "run"]
    process = subprocess.Popen(command, env=checkout_env(), stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    yield process
    os.kill(child, 9)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_causes_a_warning(tmp_path, monkeypatch, caplog, number):
    """No lock file that would outlive a killed process is created."""

    def none(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock, "_held", [])  # keeps earlier runs of this process locked
    monkeypatch.setattr(fcntl, "flock", none)
    make_output_dir(tmp_path / "run", overwrite=False)
    wait_until_free(tmp_path / "run")  # releases the lock
    assert f"run cannot be locked ({os.strerror(number)}); make sure" in caplog.text
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]
    assert not (tmp_path / "run/.lock").read_text()


def test_a_directory_that_another_process_holds_is_refused(tmp_path, holder):
    """With --resume, it is refused after a wait. Killing the process releases the lock."""
    with pytest.raises(UserError, match="another process is writing to the output directory .*run"):
        make_output_dir(tmp_path / "run", overwrite=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "_TIMEOUT_S", 0.3)
        with pytest.raises(UserError, match="choose another output_dir, or wait for it"):
            wait_until_free(tmp_path / "run")
    holder.kill()
    holder.wait()
    make_output_dir(tmp_path / "run", overwrite=False, resume=True)
    lock.release_output_dir()


def test_an_existing_lock_file_does_not_block_a_run(tmp_path):
    """Finished runs of any version leave one; its content is kept."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").write_text("left")
    wait_until_free(tmp_path / "run")
    assert make_output_dir(tmp_path / "run", overwrite=False) is None
    assert (tmp_path / "run/.lock").read_text() == "left"
    (tmp_path / "run/run.json").write_text("{}")
    backup_dir = make_output_dir(tmp_path / "run", overwrite=True)  # this process holds the lock
    assert (backup_dir / "run.json").exists() and (tmp_path / "run/.lock").exists()
    if not os.fork():  # a child, such as a worker, neither holds nor releases the lock
        lock.release_output_dir()
        os._exit(0)
    assert os.wait()[1] == 0
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", code, tmp_path / "run/.lock"]
    assert b"BlockingIOError" in subprocess.run(command, capture_output=True).stderr
    lock.release_output_dir()
    assert subprocess.run(command).returncode == 0


@pytest.mark.parametrize("name", ["epoch_12.pth", "iter_90000.pth", "latest.pth"])
def test_checkpoints_of_mmdetection_are_never_mixed_with(tmp_path, name):
    """Its default folder for a config has the same name as that of d2ext."""
    folder = tmp_path / "work_dirs" / "mine"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b"theirs")
    (folder / "latest.pth").write_bytes(b"theirs")
    (folder / "last_checkpoint").write_text(str(folder / name))  # as MMDetection 3 does
    text = f"mine holds checkpoints of another program, such as {name}; choose another output_dir"
    with pytest.raises(UserError, match=text):
        make_output_dir(folder, overwrite=False)
    with pytest.raises(UserError, match=f"would move train.init_checkpoint=.*{name} aside with"):
        refuse_moving(folder, folder / name, "train.init_checkpoint")
    for other in (tmp_path / name, "https://example.org/a.pth", ""):
        refuse_moving(folder, other, "train.init_checkpoint")
    backup = make_output_dir(folder, overwrite=True)
    assert (backup / name).read_bytes() == b"theirs" and not (folder / name).exists()


def test_beside_checkpoints_of_a_run_another_one_is_a_run(tmp_path):
    for name in ("run.json", "epoch_1.pth", "epoch_1.pth.sha256", "latest.pth"):
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="holds another run; continue it with resume=True"):
        make_output_dir(tmp_path, overwrite=False)
