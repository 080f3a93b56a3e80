"""Tests write only to their own folder; commands work in any checkout and with read-only data."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from d2ext.files import cache_dir
from tests.conftest import LITE0, REPO


def test_each_test_has_its_own_directory_and_home(tmp_path):
    assert Path.cwd() == tmp_path
    users = Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert Path.home() != users and not cache_dir().is_relative_to(users)
    assert "DETECTRON2_DATASETS" not in os.environ


def test_tests_use_the_cpu_also_on_a_machine_with_a_gpu():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_left_in_the_checkout_fails_the_session(tmp_path, workers):
    checkout = tmp_path / "checkout"
    (checkout / "tests").mkdir(parents=True)
    shutil.copy(REPO / "tests/conftest.py", checkout / "tests")
    test = checkout / "tests" / "test_it.py"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", str(workers)]

    def session(file):
        test.write_text(f"from pathlib import Path\ndef test_it(repo): Path({file}).touch()\n")
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True)

    own = session("'a.txt'")
    assert own.returncode == 0, own.stdout + own.stderr
    leak = session("repo / 'a.txt'")
    assert leak.returncode == 1 and "1 passed" in leak.stdout
    assert "own folder only: a.txt" in leak.stdout


def test_a_checkout_with_a_space_and_an_umlaut_and_read_only_photos(tmp_path, tiny):
    checkout = tmp_path / "my clöne"
    for name in ("configs", "d2ext", "tools", "examples"):
        shutil.copytree(REPO / name, checkout / name)
    photos = checkout / "examples"
    for path in (*photos.rglob("*"), photos):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in photos.rglob("*")}

    def train(*args):
        done = subprocess.run(
            [sys.executable, "tools/train_net.py", *args],
            cwd=checkout,
            env={**os.environ, "DETECTRON2_DATASETS": "/nowhere"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    less = [text for text in tiny if not text.startswith("data.root=")]
    assert "balloon_train      61" in train("--config-file", LITE0, *less, "train.max_iter=1")
    run = checkout / "work_dirs" / Path(LITE0).stem
    assert (run / "report.html").is_file()
    train("--config-file", run / "config.yaml", "--resume", "train.max_iter=2")
    # Root can write to read-only files, so compare the times.
    assert {path: path.stat().st_mtime_ns for path in photos.rglob("*")} == before
