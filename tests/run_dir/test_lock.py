"""The output directory of a run."""

import errno
import fcntl

from d2ext.run_dir.lock import make_output_dir, wait_until_free


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    make_output_dir(tmp_path / "run", overwrite=False)
    wait_until_free(tmp_path)  # lets go
    assert "run cannot be locked (No locks available): no other process" in caplog.text
