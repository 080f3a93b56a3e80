"""Writers that fail, and runs that fail while writers are open."""

import errno
import json
import os
from pathlib import Path

import pytest
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter

import d2ext
from tests.conftest import LITE0, REPO


class Writer(EventWriter):
    """Writes `closed` when it is closed."""

    def write(self):
        pass

    def close(self):
        Path("closed").write_text("yes")


class Full(EventWriter):
    """Fails on its own disk, in every call."""

    def write(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "elsewhere.csv")

    close = write


class Denied(EventWriter):
    """Fails as if a record of it could not be written."""

    def write(self):
        raise d2ext.UserError("postgresql://me:secret@host/db cannot be written")

    close = write


class Unbuildable(Full):
    def __init__(self):
        self.write()


class FailsAtTheEnd(HookBase):
    def after_train(self):
        raise RuntimeError("a fault")


@pytest.fixture
def cfg(tiny, tmp_path):
    names = ("Unbuildable", "Full", "Denied", "Writer")
    writers = [{"_target_": f"{__name__}.{name}"} for name in names]
    options = ["train.max_iter=2", f"train.writers={json.dumps(writers)}"]
    return d2ext.load_config(REPO / LITE0, [*tiny, *options])


def test_no_error_of_a_writer_ends_a_training(cfg, capsys):
    run = d2ext.train(cfg, "runs/a", validate=False)
    assert run.trainer.iter == 2 and Path("closed").is_file()
    output = capsys.readouterr().out
    assert "train.writers[0] is skipped: it cannot be built (OSError: [Errno 28]" in output
    assert output.count("Full failed (OSError: [Errno 28]") == 1
    assert "Denied failed (UserError: postgresql://***@host/db cannot be written)" in output
    assert "secret" not in output + (run.output_dir / "log.txt").read_text()


def test_writers_are_closed_if_a_hook_fails_at_the_end(cfg):
    with pytest.raises(RuntimeError, match="a fault"):
        d2ext.train(cfg, "runs/a", validate=False, hooks=[FailsAtTheEnd()])
    assert Path("closed").is_file()
