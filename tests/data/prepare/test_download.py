"""Downloads from a real server: complete, resumed and failing."""

from pathlib import Path
from typing import Any

import pytest

from d2ext.data.prepare.download import Unreachable, download

BODY = bytes(range(256)) * 1000


def test_interrupted_download_is_resumed(tmp_path: Path, server: Any) -> None:
    url, path = server.put("a.zip", BODY), tmp_path / "a.zip.part"
    for breaks_at in (70_000, 150_000):
        server.breaks_at = breaks_at
        with pytest.raises(Unreachable, match=f"broke after {breaks_at} of 256000 bytes"):
            download(url, path)
        assert path.read_bytes() == BODY[:breaks_at]
    server.breaks_at = None
    download(url, path)
    assert path.read_bytes() == BODY
    download(url, path)  # nothing is left to download
    assert path.read_bytes() == BODY
    parts = [f"bytes={n}-" for n in (70_000, 150_000, 256_000)]
    assert server.asked == [None, *parts]


def test_server_without_ranges_sends_the_whole_file(tmp_path: Path, server: Any) -> None:
    url, path = server.put("a.zip", BODY), tmp_path / "a.zip.part"
    path.write_bytes(b"x" * 100_000)
    server.ranges = False
    download(url, path)
    assert path.read_bytes() == BODY
    assert server.asked == ["bytes=100000-"]


def test_partial_file_that_is_too_long_is_replaced(tmp_path: Path, server: Any) -> None:
    url, path = server.put("a.zip", BODY), tmp_path / "a.zip.part"
    path.write_bytes(BODY + b"x")
    download(url, path)
    assert path.read_bytes() == BODY


def test_unreachable_files_are_reported(tmp_path: Path, server: Any, closed_port: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"begun")
    for url, reason in ((closed_port, "refused"), (f"{server.root}/nowhere", "404 Not Found")):
        with pytest.raises(Unreachable, match=reason):
            download(url, path)
    assert path.read_bytes() == b"begun"
