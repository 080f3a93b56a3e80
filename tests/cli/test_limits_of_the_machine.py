"""If a resource limit of the machine is too small, the error names it and says how to raise it.

Each command runs under its own limits; a small /dev/shm is mounted in a mount namespace.
"""

import errno
import os
import re
import resource
import subprocess
import sys

import pytest

from d2ext.errors import user_message
from d2ext.limits import exhausted, raise_open_files
from tests.conftest import LITE0, REPO

TRAIN = [REPO / "tools/train_net.py", "--config-file", REPO / LITE0]
# As root, or in a user namespace if the system allows one.
UNSHARE = (["unshare", "-m"], ["unshare", "-r", "-m"])
WORKING = [c for c in UNSHARE if subprocess.run([*c, "true"], capture_output=True).returncode == 0]
needs_mounts = pytest.mark.skipif(not WORKING, reason="needs root or user namespaces")


def _under(setup, *command):
    """Run a Python command in a shell that runs `setup` first."""
    shell = ["bash", "-c", f'{setup} && exec "$@"', "bash", sys.executable, *map(str, command)]
    return subprocess.run(
        [*WORKING[0], *shell] if "mount" in setup else shell,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def _train(setup, tiny, folder, *options):
    command = [*TRAIN, "--work-dir", folder, "--no-validate", *tiny, "train.max_iter=2"]
    return _under(setup, *command, *options)


def _check(done, *words):
    """Check that the command failed with one final error line that contains `words`."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    last = done.stderr.splitlines()[-1].lstrip("\0")  # torch 2.6 prints a NUL before it
    assert last.startswith("error: ") and all(word in last for word in words), last


@needs_mounts
@pytest.mark.parametrize(
    "setup",
    [
        "mount -t tmpfs -o size=64k tmpfs /dev/shm",
        pytest.param(
            "mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/full",
            marks=pytest.mark.nightly,
        ),
        pytest.param("mount -t tmpfs -o ro tmpfs /dev/shm", marks=pytest.mark.nightly),
    ],
)
def test_little_shared_memory_is_reported(tiny, tmp_path, setup):
    done = _train(setup, tiny, tmp_path, "dataloader.train.num_workers=2")
    _check(done, "shared memory", "/dev/shm", "--shm-size", "dataloader.train.num_workers")
    assert "loader      warning: 2 workers may need" in done.stdout


@needs_mounts
def test_no_workers_need_no_shared_memory(tiny, tmp_path):
    setup = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    done = _train(setup, tiny, tmp_path, "dataloader.train.num_workers=0")
    assert done.returncode == 0, done.stderr
    assert "loader      warning" not in done.stdout


@needs_mounts
def test_little_shared_memory_for_the_evaluation_is_reported(tiny, tmp_path):
    command = [*TRAIN, "--work-dir", tmp_path, *tiny]
    setup = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    done = _under(setup, *command, "train.max_iter=1", "dataloader.val.num_workers=2")
    _check(done, "shared memory", "--shm-size", "dataloader.val.num_workers")
    (warning,) = [line for line in done.stdout.splitlines() if "loader      warning" in line]
    assert "2 workers may need" in warning and "lower dataloader.val.num_workers" in warning


@pytest.mark.parametrize(
    "files", [*(pytest.param(n, marks=pytest.mark.nightly) for n in (24, 64)), 100]
)
def test_a_low_limit_of_open_files_is_reported(tiny, tmp_path, files):
    """Depending on the limit, the workers fail to start, or a worker or the trainer fails."""
    options = ["dataloader.train.num_workers=4", "dataloader.train.total_batch_size=16"]
    done = _train(f"ulimit -n {files}", tiny, tmp_path, *options)
    _check(done, "open files", "ulimit -n", f"{files} open files", "dataloader.train.num_workers")
    assert "open files, but" in done.stdout  # the plan's warning


def test_a_soft_limit_of_open_files_is_raised(tiny, tmp_path):
    done = _train("ulimit -Sn 40", tiny, tmp_path, "dataloader.train.num_workers=2")
    assert done.returncode == 0, done.stderr


def test_little_memory_is_reported(tiny, tmp_path):
    """The limit is too small to import torch."""
    done = _train("ulimit -v 1500000", tiny, tmp_path)
    _check(done, "out of memory", "`ulimit -v` allows 1464 MB")


@needs_mounts
def test_the_doctor_warns_about_low_limits():
    setup = "mount -t tmpfs -o size=64m tmpfs /dev/shm && ulimit -n 256"
    done = _under(setup, REPO / "tools/doctor.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"warning: only 67 MB of shared memory .*--shm-size", done.stdout)
    assert "warning: only 256 open files" in done.stdout


def test_raise_open_files_raises_the_soft_limit():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, before[1]), before[1]))
        raise_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(before[1], 65536)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.EMFILE, "Too many open files", "a.jpg"), "open files"),
        (OSError(errno.ENFILE, "Too many open files in system"), "open files"),
        (RuntimeError("received 0 items of ancillary data"), "open files"),
        (RuntimeError("unable to open shared memory object: Too many open files"), "open files"),
        (RuntimeError("unable to allocate shared memory(shm) for file"), "shared memory"),
        (RuntimeError("worker 7 was ended by SIGBUS"), "shared memory"),
        (RuntimeError("can't start new thread"), "processes"),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "processes"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.pth"), None),
        (OSError("image file is truncated"), None),
        (FileNotFoundError(errno.ENOENT, "No such file", "/dev/shm/photos/a.jpg"), None),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/shm"), "shared memory"),
        (RuntimeError("unable to write to file </torch_7_1_0>: No space left"), "shared memory"),
    ],
)
def test_errors_are_attributed_to_the_exhausted_resource(error, kind):
    assert exhausted(f"{type(error).__name__}: {error}") == kind
    if kind and isinstance(error, OSError):
        assert user_message(error).startswith(f"this process ran out of {kind} (")


def test_a_memory_error_is_reported_as_out_of_memory():
    assert user_message(MemoryError()).startswith("this process ran out of memory (MemoryError")
    assert user_message(ImportError("no module named x")) is None
