"""The balloon dataset is copied, downloaded from a real server and checked, or not written."""

import hashlib
import json
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

from d2ext.data.prepare.balloon import PHOTOS, REDUCED_DIGEST, describe_balloon, prepare_balloon
from d2ext.errors import UserError
from tests.balloons import write_balloons

ANNOTATIONS = "via_region_data.json"


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in `folder`, by relative name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


def digest_of(folder: Path) -> str:
    """Compute the digest of a dataset as described in `d2ext.data.prepare.balloon`."""
    lines = []
    for split in ("train", "val"):
        via = json.loads((folder / split / ANNOTATIONS).read_text())
        for name in sorted([ANNOTATIONS, *(e["filename"] for e in via.values())]):
            file_digest = hashlib.sha256((folder / split / name).read_bytes()).hexdigest()
            lines.append(f"{split}/{name} {file_digest}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small dataset."""
    root = tmp_path_factory.mktemp("small")
    write_balloons(root, num_train=3, num_val=2)
    return root


def zipped(folder: Path, path: Path, **extra: str) -> bytes:
    """Write a zip of train and val, with the files that macOS adds and `extra` members."""
    with zipfile.ZipFile(path, "w") as z:
        for name, content in contents(folder).items():
            z.writestr(f"balloon/{name}", content)
            z.writestr(f"__MACOSX/balloon/{name}", b"litter")
        for name in ("balloon/.DS_Store", "balloon/train/.DS_Store", *extra.values()):
            z.writestr(name, b"litter")
    return path.read_bytes()


def test_reduced_photos_are_copied_and_kept(tmp_path: Path, closed_port: str) -> None:
    message = prepare_balloon(tmp_path / "new" / "root", url=closed_port)
    target = tmp_path / "new" / "root" / "balloon"
    assert message.startswith(f"copied: {target} holds the balloon photos, reduced to")
    assert "61 + 13 images, 255 + 50 balloons" in message
    assert [p.name for p in target.parent.iterdir()] == ["balloon"]
    made = contents(target)
    assert made == contents(PHOTOS) and "ATTRIBUTION.md" in made
    again = prepare_balloon(target.parent, url=closed_port)
    assert again == message.removeprefix("copied: ")
    assert contents(target) == made
    with pytest.raises(UserError, match="holds the balloon photos, reduced.*another --root"):
        prepare_balloon(target.parent, full=True, url=closed_port)
    assert contents(target) == made


def test_copy_of_read_only_photos_is_writable(tmp_path: Path, closed_port: str) -> None:
    photos = shutil.copytree(PHOTOS, tmp_path / "photos")
    for path in (*photos.rglob("*"), photos):
        path.chmod(0o555 if path.is_dir() else 0o444)
    prepare_balloon(tmp_path / "root", url=closed_port, photos=photos)
    made = tmp_path / "root" / "balloon"
    assert all(path.stat().st_mode & stat.S_IWUSR for path in (made, *made.rglob("*")))


def test_modified_photos_of_the_checkout_are_not_copied(tmp_path: Path, closed_port: str) -> None:
    photos = shutil.copytree(PHOTOS, tmp_path / "photos")
    next((photos / "val").glob("*.jpg")).write_bytes(b"")
    with pytest.raises(UserError, match=f"{photos} is damaged"):
        prepare_balloon(tmp_path / "root", url=closed_port, photos=photos)
    assert list((tmp_path / "root").iterdir()) == []


@pytest.mark.parametrize("full", [True, False])
def test_original_photos_without_a_network_are_an_error(
    tmp_path: Path, closed_port: str, full: bool
) -> None:
    """An installed package has no photos to copy, so it downloads the original ones."""
    photos = PHOTOS if full else tmp_path / "absent"
    with pytest.raises(UserError, match="cannot download the original balloon photos.*refused"):
        prepare_balloon(tmp_path / "root", full, url=closed_port, photos=photos)
    assert list((tmp_path / "root").iterdir()) == []


def test_download_is_unpacked_and_checked(
    tmp_path: Path, small: Path, server: Any, closed_port: str
) -> None:
    url = server.put("balloon.zip", zipped(small, tmp_path / "z.zip"))
    digest = digest_of(small)
    message = prepare_balloon(tmp_path / "root", True, url=url, digest=digest)
    assert "downloaded" in message and "original balloon photos (3 + 2 images" in message
    assert contents(tmp_path / "root") == {f"balloon/{k}": v for k, v in contents(small).items()}
    # Now that it exists, nothing is downloaded, and the reduced photos do not replace it.
    for full in (False, True):
        kept = prepare_balloon(tmp_path / "root", full, url=closed_port, digest=digest)
        assert kept == message.removeprefix("downloaded and checked: ")


def test_empty_folder_is_filled(tmp_path: Path, small: Path, server: Any) -> None:
    (tmp_path / "root" / "balloon").mkdir(parents=True)
    url = server.put("balloon.zip", zipped(small, tmp_path / "z.zip"))
    prepare_balloon(tmp_path / "root", True, url=url, digest=digest_of(small))
    assert contents(tmp_path / "root" / "balloon") == contents(small)


def test_malicious_archive_writes_nothing_outside(tmp_path: Path, small: Path, server: Any) -> None:
    archive = zipped(
        small,
        tmp_path / "z.zip",
        up="balloon/train/../../../../evil",
        root=f"{tmp_path}/evil",
        short="../evil",
        dots="balloon/train/..",
    )
    url = server.put("balloon.zip", archive)
    prepare_balloon(tmp_path / "root", True, url=url, digest=digest_of(small))
    assert contents(tmp_path / "root" / "balloon") == contents(small)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root", "z.zip"]


@pytest.mark.parametrize("kind", ["another", "not a zip", "damaged", "incomplete"])
def test_wrong_download_leaves_nothing(tmp_path: Path, small: Path, server: Any, kind: str) -> None:
    body = zipped(small, tmp_path / "z.zip")
    if kind == "not a zip":
        body = b"<html>Please log in</html>"
    elif kind == "damaged":
        body = body[:2000] + bytes(100) + body[2100:]
    elif kind == "incomplete":
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as z:
            z.writestr(f"balloon/train/{ANNOTATIONS}", "{}")
        body = (tmp_path / "z.zip").read_bytes()
    url = server.put("balloon.zip", body)
    with pytest.raises(UserError) as e:
        prepare_balloon(tmp_path / "root", True, url=url, digest="0" * 64)
    assert url in str(e.value) and "nothing was kept" in str(e.value)
    assert list((tmp_path / "root").iterdir()) == []


def test_existing_dataset_is_checked(tmp_path: Path, small: Path) -> None:
    target = tmp_path / "balloon"
    write_balloons(target, num_train=3, num_val=2)
    digest = digest_of(small)
    assert "photos" in prepare_balloon(tmp_path, digest=digest)
    (target / "train" / "notes.txt").write_text("mine")  # unlisted files are ignored
    assert "photos" in prepare_balloon(tmp_path, digest=digest)

    photo = next((target / "val").glob("*.jpg"))
    original = photo.read_bytes()
    photo.write_bytes(original[:-100] + bytes(100))
    with pytest.raises(UserError, match="is not the released balloon dataset.*delete it"):
        prepare_balloon(tmp_path, digest=digest)
    photo.unlink()
    with pytest.raises(UserError, match=r"is damaged; delete it.*1 of 2 listed images do not"):
        prepare_balloon(tmp_path, digest=digest)
    photo.write_bytes(original)
    (target / "train" / ANNOTATIONS).unlink()
    with pytest.raises(UserError, match=r"is damaged; delete it.*train.*does not exist"):
        prepare_balloon(tmp_path, digest=digest)


def test_unwritable_root_is_reported(tmp_path: Path, closed_port: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/root/balloon.*--root"):
        prepare_balloon(tmp_path / "file" / "root", url=closed_port)


def test_reduced_release_is_recognized(real_balloon: Path) -> None:
    assert digest_of(real_balloon) == REDUCED_DIGEST
    text = describe_balloon(real_balloon)
    assert text.startswith("the balloon photos, reduced") and "61 + 13 images" in text
