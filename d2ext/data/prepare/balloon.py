"""Prepare the balloon dataset of Mask_RCNN v2.1: 61 + 13 photos with VIA annotations."""

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path

from d2ext.data.formats.via import read_via
from d2ext.data.prepare.download import Unreachable, download, unpack, writing
from d2ext.errors import UserError

# The photos that the balloon recipes read, in a checkout; an installed package has none.
PHOTOS = Path(__file__).resolve().parents[3] / "examples" / "balloon"
URL = "https://github.com/matterport/Mask_RCNN/releases/download/v2.1/balloon_dataset.zip"
# `_content` of the photos and annotations; unlike a hash of the archive, it can check a folder.
DIGEST = "e68b264c6648cffbe30dcaf5b09161102ff2bce5cd7c535ddadf87ee6c9c45bc"
REDUCED_DIGEST = "9fbfa2d3f1a98addf9d3c8e883e1c563f2b2fde1622bd8a1940b22686c6be409"

_SPLITS = ("train", "val")
_ANNOTATIONS = "via_region_data.json"
_ORIGINAL = "the original balloon photos"


def prepare_balloon(
    root: str | Path,
    full: bool = False,
    url: str = URL,
    digest: str = DIGEST,
    photos: Path = PHOTOS,
) -> str:
    """Prepare the dataset in root/balloon/{train,val}; write nothing if that fails.

    An existing dataset is checked and kept. Otherwise, the checkout's reduced photos are copied;
    with `full`, or from an installed package, the original release is downloaded.

    Args:
        root: Folder of the datasets.
        full: Require the original release.
        url: Zip file with balloon/{train,val}.
        digest: Result of `_content` for the original release.
        photos: Folder of the reduced photos.

    Returns:
        A line that says which photos `root` now holds.

    Raises:
        UserError: The existing or downloaded files are not the dataset, the server cannot be
            reached, or `root` is not writable.
    """
    root = Path(root)
    target = root / "balloon"
    how = ""
    with writing(target):
        if not target.is_dir() or not any(target.iterdir()):
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".balloon-", dir=root) as temporary:
                made = Path(temporary) / "balloon"
                if full or not photos.is_dir():
                    how = "downloaded and checked: "
                    _fetch(made, Path(temporary) / "balloon.zip", url, digest)
                else:
                    how = "copied: "
                    _copy(photos, made)
                os.replace(made, target)
        which, counts = _identify(target, digest)
    if full and which != _ORIGINAL:
        raise UserError(
            f"{target} holds {which}; move it away, or give another --root for the original photos"
        )
    return f"{how}{target} holds {which} ({counts})"


def describe_balloon(folder: Path) -> str:
    """Say which balloon photos a folder with train and val holds, and how many.

    Raises:
        UserError: The folder does not hold the dataset.
    """
    which, counts = _identify(folder, DIGEST)
    return f"{which} ({counts})"


def _identify(folder: Path, digest: str) -> tuple[str, str]:
    """Return which release a folder holds, and its counts; raise UserError if it is neither."""
    try:
        found, counts = _content(folder)
    except UserError as e:
        raise UserError(f"{folder} is damaged; delete it and run this again ({e})") from e
    known = {
        digest: _ORIGINAL,
        REDUCED_DIGEST: "the balloon photos, reduced to a short side of at most 640 pixels",
    }
    if found not in known:
        raise UserError(
            f"{folder} ({counts}) is not the released balloon dataset; move it away or delete it,"
            " and run this again"
        )
    return known[found], counts


def _content(folder: Path) -> tuple[str, str]:
    """Return a digest of the files of both splits, and a line of counts.

    The digest is the SHA-256 of one line "<split>/<name> <SHA-256 of the file>" for each annotation
    file and each image that it lists, sorted by name within train, then within val.
    """
    digest = hashlib.sha256()
    images, balloons = [], []
    for split in _SPLITS:
        part = folder / split
        records = read_via(part / _ANNOTATIONS, part, ["balloon"])
        listed = [os.path.relpath(r["file_name"], part) for r in records]
        for name in sorted([_ANNOTATIONS, *listed]):
            with open(part / name, "rb") as f:
                file_digest = hashlib.file_digest(f, "sha256").hexdigest()
            digest.update(f"{split}/{name} {file_digest}\n".encode())
        images.append(len(records))
        balloons.append(sum(len(r["annotations"]) for r in records))
    counts = f"{images[0]} + {images[1]} images, {balloons[0]} + {balloons[1]} balloons"
    return digest.hexdigest(), counts


def _copy(photos: Path, folder: Path) -> None:
    """Copy the reduced photos without their permissions, because the checkout may be read-only."""
    _identify(photos, DIGEST)
    for split in _SPLITS:
        (folder / split).mkdir(parents=True)
        for file in (photos / split).iterdir():
            shutil.copyfile(file, folder / split / file.name)
    shutil.copyfile(photos / "ATTRIBUTION.md", folder / "ATTRIBUTION.md")


def _fetch(folder: Path, archive: Path, url: str, digest: str) -> None:
    """Download the zip and unpack it to `folder`.

    Raises:
        UserError: The server cannot be reached, or the download is not the dataset.
    """
    try:
        download(url, archive)
    except Unreachable as e:
        raise UserError(
            f"cannot download the original balloon photos ({e}); run this again with a network"
        ) from e
    try:
        for split in _SPLITS:
            unpack(archive, f"balloon/{split}", folder / split)
        found, _ = _content(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, UserError) as e:
        found = str(e)
    if found != digest:
        raise UserError(
            f"{url} is not the balloon dataset (digest {found}, expected {digest}); nothing was"
            " kept, try again later"
        )
