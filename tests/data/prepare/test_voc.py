"""Pascal VOC is prepared from a real server with tiny archives."""

import dataclasses
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from d2ext.data.prepare.voc import IMAGE_SETS, ImageSet, prepare_voc
from d2ext.errors import UserError


def run(root: Path, image_sets: list[ImageSet]) -> list[str]:
    """Return all lines of `prepare_voc`."""
    return list(prepare_voc(root, image_sets))


def archive(one: ImageSet, names: list[str]) -> bytes:
    """Return a tar like those of VOC, with other files and a path that leads out of the folder."""
    folder = f"VOCdevkit/{one.folder}"
    files = {f"{folder}/ImageSets/Main/{one.name}.txt": "\n".join(names)}
    for name in names:
        files[f"{folder}/JPEGImages/{name}.jpg"] = "photo" * 9_000
        files[f"{folder}/Annotations/{name}.xml"] = "<annotation/>"
        files[f"{folder}/SegmentationClass/{name}.png"] = "mask"
    files[f"{folder}/JPEGImages/../../../evil.jpg"] = "litter"
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return body.getvalue()


@pytest.fixture
def image_sets(server: Any) -> list[ImageSet]:
    """Return the real image sets, with 2, 3 and 4 photos on the server."""
    tiny = []
    for count, one in enumerate(IMAGE_SETS, 2):
        body = archive(one, [f"{one.name}_{i}" for i in range(count)])
        url, md5 = server.put(one.archive, body), hashlib.md5(body).hexdigest()
        tiny.append(dataclasses.replace(one, url=url, md5=md5, size=len(body), images=count))
    return tiny


def test_all_image_sets_are_fetched_and_then_kept(
    tmp_path: Path, server: Any, image_sets: list
) -> None:
    lines = run(tmp_path, image_sets)
    assert f"{tmp_path}/VOC2007 holds the 3 photos of test with their annotations" in lines
    assert len(list((tmp_path / "VOC2007" / "JPEGImages").iterdir())) == 5
    assert len(list((tmp_path / "VOC2012" / "Annotations").iterdir())) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["VOC2007", "VOC2012"]
    assert {p.name for p in (tmp_path / "VOC2012").iterdir()} == {
        *("Annotations", "ImageSets", "JPEGImages")
    }
    asked = len(server.asked)
    assert run(tmp_path, image_sets) == [line for line in lines if " holds " in line]
    assert len(server.asked) == asked


def test_interrupted_download_resumes(tmp_path: Path, server: Any, image_sets: list) -> None:
    server.breaks_at = 30_000
    with pytest.raises(UserError, match="Run this again to resume, or download manually") as e:
        run(tmp_path, image_sets)
    assert all(one.url in str(e.value) for one in image_sets)
    server.breaks_at = None
    assert len(run(tmp_path, image_sets)) == 9
    assert "bytes=30000-" in server.asked


def test_damaged_download_is_deleted(tmp_path: Path, server: Any, image_sets: list) -> None:
    server.put(image_sets[0].archive, b"damaged")
    with pytest.raises(UserError, match=r"part is damaged .*; it was deleted, and run this again"):
        run(tmp_path, image_sets)
    assert list(tmp_path.iterdir()) == []


def test_manually_downloaded_archive_is_used_and_kept(
    tmp_path: Path, server: Any, image_sets: list
) -> None:
    one = dataclasses.replace(image_sets[1], url=f"http://127.0.0.1:1/{image_sets[1].archive}")
    mine = tmp_path / one.archive
    mine.write_bytes(server.pages[f"/{one.archive}"])
    assert run(tmp_path, [one])[-1].endswith("the 3 photos of test with their annotations")
    assert mine.is_file()
    mine.write_bytes(b"damaged")
    (tmp_path / "VOC2007" / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(UserError, match="is damaged .*; delete it or replace it"):
        run(tmp_path, [one])


def test_missing_files_are_counted_and_fetched_again(tmp_path: Path, image_sets: list) -> None:
    run(tmp_path, image_sets)
    for name in ("JPEGImages/test_1.jpg", "JPEGImages/test_2.jpg", "Annotations/test_0.xml"):
        (tmp_path / "VOC2007" / name).unlink()
    with pytest.raises(UserError) as e:
        run(tmp_path, image_sets)
    assert "test.txt lacks 1 annotation, the first is test_0.xml" in str(e.value)
    assert "lacks 2 photos, the first is test_1.jpg; delete this list" in str(e.value)
    (tmp_path / "VOC2007" / "ImageSets" / "Main" / "test.txt").unlink()
    assert len(run(tmp_path, image_sets)) == 5  # only this set is fetched


def test_a_list_of_another_length_is_refused(tmp_path: Path, image_sets: list) -> None:
    run(tmp_path, image_sets)
    short = dataclasses.replace(image_sets[2], images=5)
    with pytest.raises(UserError, match="trainval.txt lists 4 photos, not 5; delete this list"):
        run(tmp_path, [short])
