"""Puts the balloon dataset in place: 61 + 13 photos with VIA annotations, from Mask_RCNN v2.1."""

import hashlib
import os
import tempfile
import zipfile
import zlib
from pathlib import Path

from d2ext.data.download import Unreachable, download, unpack, writing
from d2ext.data.formats.via import read_via
from d2ext.data.synthetic import draw_balloons, is_synthetic
from d2ext.errors import UserError

URL = "https://github.com/matterport/Mask_RCNN/releases/download/v2.1/balloon_dataset.zip"
# What `_content` computes of the photos and their annotations. Not the archive's own hash: this
# one can check a folder, too.
DIGEST = "e68b264c6648cffbe30dcaf5b09161102ff2bce5cd7c535ddadf87ee6c9c45bc"

_SPLITS = ("train", "val")
_ANNOTATIONS = "via_region_data.json"


def prepare_balloon(
    root: str | Path, synthetic: bool = False, url: str = URL, digest: str = DIGEST
) -> str:
    """Puts the dataset at root/balloon/{train,val}, whole or not at all.

    A dataset that is there is checked and kept. Otherwise the photos are downloaded; if the server
    cannot be reached, or if `synthetic`, pictures are drawn instead (`draw_balloons`).

    Args:
        root: the folder of data sets, $DETECTRON2_DATASETS.
        synthetic: draw, do not download.
        url: a zip with balloon/{train,val}.
        digest: what `_content` has to compute of the photos.

    Returns:
        A line that says what is there now.

    Raises:
        UserError: what is there or what was downloaded is not the dataset, or `root` is not
            writable.
    """
    root = Path(root)
    target = root / "balloon"
    with writing(target):
        if target.is_dir() and any(target.iterdir()):
            return _check(target, digest)
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".balloon-", dir=root) as temporary:
            made = Path(temporary) / "balloon"
            why = "as asked"
            if not synthetic:
                try:
                    _fetch(made, Path(temporary) / "balloon.zip", url, digest)
                except Unreachable as e:
                    synthetic, why = True, f"without the photos ({e})"
            if synthetic:
                draw_balloons(made)
            os.replace(made, target)
    if synthetic:
        return f"drew synthetic balloons, {why}: {_check(target, digest)}"
    return f"downloaded and checked: {_check(target, digest)}"


def _check(folder: Path, digest: str) -> str:
    """Describes the dataset in `folder`; raises UserError if it is none."""
    try:
        found, counts = _content(folder)
    except UserError as e:
        raise UserError(f"{folder} is damaged; delete it and run this again ({e})") from e
    if is_synthetic(folder):
        return (
            f"{folder} holds the synthetic balloons ({counts}), no photos; for the photos delete it"
            " and run this again with a network"
        )
    if found != digest:
        raise UserError(
            f"{folder} ({counts}) is not the released balloon dataset; move it away or delete it,"
            " and run this again"
        )
    return f"{folder} holds the balloon photos ({counts})"


def _content(folder: Path) -> tuple[str, str]:
    """Reads both splits; returns a digest of their files and a line of counts.

    The digest is the SHA-256 over a line "<split>/<name> <SHA-256 of the file>" for the annotation
    file and each image that it lists, sorted by name within train, then val.
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


def _fetch(folder: Path, archive: Path, url: str, digest: str) -> None:
    """Downloads the zip and unpacks it to `folder`.

    Raises:
        Unreachable: it cannot be downloaded.
        UserError: it is not what was expected.
    """
    download(url, archive)
    try:
        for split in _SPLITS:
            unpack(archive, f"balloon/{split}", folder / split)
        found, _ = _content(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, UserError) as e:
        found = str(e)
    if found != digest:
        raise UserError(
            f"{url} does not hold the balloon dataset (digest {found}, expected {digest}); nothing"
            " was kept. Try again later, or draw a stand-in with --synthetic"
        )
