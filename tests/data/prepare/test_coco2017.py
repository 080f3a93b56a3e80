"""COCO is prepared from a real server with tiny archives; interruptions leave no broken parts."""

import dataclasses
import hashlib
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from d2ext.data.prepare.coco2017 import PARTS, STUFF, Part, prepare_coco
from d2ext.errors import UserError
from tests.conftest import checkout_env

FILES = {
    "annotations": {"instances_train2017.json": b"{}", "instances_val2017.json": b"[]"},
    "val2017": {f"{i:012d}.jpg": os.urandom(50_000) for i in range(2)},
    "train2017": {f"{i:012d}.jpg": os.urandom(50_000) for i in range(3)},
}


def run(root: Path, parts: list[Part]) -> list[str]:
    """Return all lines of `prepare_coco`."""
    return list(prepare_coco(root, parts))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file directly in `folder`."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def parts(server: Any, tmp_path: Path) -> list[Part]:
    """Return the real parts, with tiny archives on the server."""
    tiny = []
    for part in PARTS:
        with zipfile.ZipFile(tmp_path / "z", "w") as z:
            z.mkdir(part.name)
            for name, content in FILES[part.name].items():
                z.writestr(f"{part.name}/{name}", content)
            z.writestr("../evil.jpg", b"litter")
            z.writestr(f"{part.name}/../../evil.jpg", b"litter")
        body = (tmp_path / "z").read_bytes()
        tiny.append(
            dataclasses.replace(
                part,
                url=server.put(part.archive, body),
                md5=hashlib.md5(body).hexdigest(),
                size=len(body),
                unpacked=len(body),
                images=len(FILES[part.name]) if part.images else 0,
            )
        )
    return tiny


def zipped(files: dict[str, bytes]) -> bytes:
    """Return a zip archive."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        for name, content in files.items():
            z.writestr(name, content)
    return archive.getvalue()


MAPS = {
    "train2017": {f"{i:012d}.png": os.urandom(50_000) for i in range(3)},
    "val2017": {f"{i:012d}.png": os.urandom(50_000) for i in range(2)},
}
MAPS_OF_BOTH = {f"{s}/{name}": data for s, files in MAPS.items() for name, data in files.items()}


@pytest.fixture
def stuff(server: Any) -> list[Part]:
    """Return the parts with label maps; both are in one tiny archive on the server."""
    body = zipped(MAPS_OF_BOTH)
    url = server.put("stuffthingmaps_trainval2017.zip", body)
    return [
        dataclasses.replace(
            part, url=url, size=len(body), unpacked=1, images=len(MAPS[Path(part.name).name])
        )
        for part in STUFF
    ]


def test_label_maps_are_fetched_with_one_download(tmp_path: Path, server: Any, stuff: Any) -> None:
    """No checksum is published, and the output says so."""
    lines = run(tmp_path, stuff)
    assert sum("no checksum of stuffthingmaps_trainval2017.zip" in line for line in lines) == 2
    folder = tmp_path / "coco" / "stuffthingmaps"
    assert f"{folder}/train2017 holds 3 label maps" in lines
    for split, files in MAPS.items():
        assert contents(folder / split) == files
    assert server.asked == [None]
    assert [p.name for p in folder.parent.iterdir()] == ["stuffthingmaps"]  # no archive
    server.pages.clear()
    assert sorted(run(tmp_path, stuff)) == [
        f"{folder}/train2017 holds 3 label maps",
        f"{folder}/val2017 holds 2 label maps",
    ]


def test_interrupted_download_of_label_maps_is_resumed(
    tmp_path: Path, server: Any, stuff: Any
) -> None:
    server.breaks_at = 60_000
    with pytest.raises(UserError, match="broke after 60000 of .* again to resume") as e:
        run(tmp_path, stuff)
    assert str(e.value).count(stuff[0].url) == 2  # what broke, and what to download manually
    server.breaks_at = None
    run(tmp_path, stuff)
    assert server.asked == [None, "bytes=60000-"]
    assert contents(tmp_path / "coco" / "stuffthingmaps" / "train2017") == MAPS["train2017"]


def test_damaged_or_incomplete_label_maps_are_refused(
    tmp_path: Path, server: Any, stuff: Any
) -> None:
    """Without a checksum, the CRC of each file and the number of files show it."""
    whole = zipped(MAPS_OF_BOTH)
    changed = bytearray(whole)
    changed[whole.index(MAPS["val2017"]["000000000001.png"]) + 25_000] ^= 1
    few = zipped({name: MAPS_OF_BOTH[name] for name in list(MAPS_OF_BOTH)[:-1]})
    for body, words in ((bytes(changed), "Bad CRC-32"), (few, "holds 1 label maps, not 2")):
        server.put("stuffthingmaps_trainval2017.zip", body)
        with pytest.raises(UserError, match=rf"\.zip\.part is damaged .*{words}.*deleted, and run"):
            run(tmp_path, stuff)
        left = tmp_path / "coco"
        assert [p for p in left.rglob("*") if p.is_file()] == []


def test_all_parts_are_fetched_and_then_kept(tmp_path: Path, server: Any, parts: Any) -> None:
    root = tmp_path / "new" / "root"
    lines = run(root, parts)
    assert f"{root}/coco/train2017 holds 3 photos" in lines
    assert sorted(p.name for p in (root / "coco").iterdir()) == sorted(FILES)  # no archive
    for name, files in FILES.items():
        assert contents(root / "coco" / name) == files
    server.pages.clear()
    assert run(root, parts) == [
        f"{root}/coco/annotations holds instances_train2017.json, instances_val2017.json",
        f"{root}/coco/val2017 holds 2 photos",
        f"{root}/coco/train2017 holds 3 photos",
    ]


def test_interrupted_download_is_resumed(tmp_path: Path, server: Any, parts: Any) -> None:
    server.breaks_at = 60_000
    with pytest.raises(UserError, match="broke after 60000 of .* again to resume") as e:
        run(tmp_path, parts)
    assert "\n" not in str(e.value)
    # annotations.zip is smaller than 60,000 bytes, so only the others are left.
    assert parts[0].url not in str(e.value)
    assert parts[1].url in str(e.value) and parts[2].url in str(e.value)
    folder = tmp_path / "coco"
    assert sorted(p.name for p in folder.iterdir()) == ["annotations", "val2017.zip.part"]
    server.breaks_at = None
    run(tmp_path, parts)
    assert server.asked == [None, None, "bytes=60000-", None]
    assert contents(folder / "val2017") == FILES["val2017"]


def test_damaged_download_is_deleted(tmp_path: Path, server: Any, parts: Any) -> None:
    part = dataclasses.replace(parts[1], md5="0" * 32)
    with pytest.raises(UserError, match=r"val2017.zip.part is damaged \(md5 .*deleted"):
        run(tmp_path, [part])
    assert list((tmp_path / "coco").iterdir()) == []


def test_manually_downloaded_archive_is_used_and_kept(
    tmp_path: Path, server: Any, parts: Any, closed_port: str
) -> None:
    part = dataclasses.replace(parts[1], url=closed_port.replace("balloon", "val2017"))
    with pytest.raises(UserError, match=r"refused.*download manually: http.*put.* into .*coco and"):
        run(tmp_path, [part])
    by_hand = tmp_path / "coco" / "val2017.zip"
    by_hand.write_bytes(b"something else")
    with pytest.raises(UserError, match="val2017.zip is damaged .*replace it"):
        run(tmp_path, [part])
    assert by_hand.exists()
    by_hand.write_bytes(server.pages["/val2017.zip"])
    run(tmp_path, [part])
    assert contents(tmp_path / "coco" / "val2017") == FILES["val2017"] and by_hand.exists()


def test_incomplete_part_is_reported_and_kept(tmp_path: Path, server: Any, parts: Any) -> None:
    run(tmp_path, parts)
    photo = tmp_path / "coco" / "train2017" / "000000000000.jpg"
    photo.unlink()
    with pytest.raises(UserError, match=r"train2017 holds 2 photos, not 3; move it away or"):
        run(tmp_path, parts)
    assert len(contents(photo.parent)) == 2
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(UserError, match="annotations lacks instances_val2017.json; move"):
        run(tmp_path, parts[:1])


def test_space_is_checked_first(tmp_path: Path, server: Any, parts: Any) -> None:
    huge = dataclasses.replace(parts[2], size=10**18, unpacked=2 * 10**18)
    with pytest.raises(UserError, match=r"free, but 3e\+06 TB are needed; free space"):
        run(tmp_path, [parts[1], huge])
    assert server.asked == []


CODE = """
import sys
from d2ext.data.prepare.coco2017 import Part, prepare_coco
from d2ext.errors import run_tool
def main():
    for line in prepare_coco(sys.argv[1], [Part(*sys.argv[2:5], 1, 1, images=2)]):
        print(line, flush=True)
run_tool(main)
"""


@pytest.fixture
def command(parts: Any, tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Return a function that starts a process that fetches val2017 to tmp_path/root."""
    val = parts[1]
    line = [sys.executable, "-c", CODE, str(tmp_path / "root"), val.name, val.url, val.md5]

    def start(prefix: list[str]) -> subprocess.Popen:
        return subprocess.Popen(
            [*prefix, *line],
            env=checkout_env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Background jobs of a shell, which these tests may be, ignore SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


def test_full_disk_is_reported_in_one_line(tmp_path: Path, command: Any) -> None:
    # A file size limit fails in the same place as a full disk.
    process = command(["sh", "-c", 'ulimit -f 16; exec "$@"', "sh"])
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert stderr.startswith("error: cannot write") and len(stderr.splitlines()) == 1
    assert [p.name for p in (tmp_path / "root" / "coco").iterdir()] == ["val2017.zip.part"]


def test_ctrl_c_keeps_the_partial_download(tmp_path: Path, server: Any, command: Any) -> None:
    part = tmp_path / "root" / "coco" / "val2017.zip.part"
    server.stalls_at = 70_000
    process = command([])
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size >= 1 << 16):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    server.stalls_at = None
    assert process.returncode == 130 and stderr.endswith("interrupted\n")
    assert [p.name for p in part.parent.iterdir()] == ["val2017.zip.part"]
    assert server.pages["/val2017.zip"].startswith(part.read_bytes())
    again = command([])
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert server.asked[1].startswith("bytes=")
    assert contents(part.with_name("val2017")) == FILES["val2017"]
