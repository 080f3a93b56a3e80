"""Prepare COCO 2017 where Detectron2 expects it: root/coco/{annotations,train2017,val2017}.

COCO-Stuff's label maps go to root/coco/stuffthingmaps/{train2017,val2017}.
"""

import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from d2ext.data.prepare.download import (
    Unreachable,
    check_md5,
    check_space,
    damaged,
    download,
    format_bytes,
    unpack,
    writing,
)
from d2ext.errors import UserError


@dataclass(frozen=True)
class Part:
    """One folder of the dataset and the archive that holds it.

    Attributes:
        name: Path of the folder below root/coco; its last part is the folder in the archive.
        url: URL of the archive, a zip. Parts may share one.
        md5: MD5 of the archive; None if its authors publish none.
        size: Approximate size of the archive in bytes.
        unpacked: Approximate size of the folder in bytes.
        images: Number of images in the folder; 0 for a folder of other files.
        files: Names of files that the folder must contain.
        kind: What the images are, a key of `_SUFFIXES`.
    """

    name: str
    url: str
    md5: str | None
    size: int
    unpacked: int
    images: int = 0
    files: Sequence[str] = ()
    kind: str = "photos"

    @property
    def archive(self) -> str:
        """Return the file name of the archive."""
        return self.url.rpartition("/")[2]


_SUFFIXES = {"photos": ".jpg", "label maps": ".png"}
_SERVER = "http://images.cocodataset.org"
PARTS = (  # the small ones first
    Part(
        name="annotations",
        url=f"{_SERVER}/annotations/annotations_trainval2017.zip",
        md5="f4bbac642086de4f52a3fdda2de5fa2c",
        size=241 << 20,
        unpacked=800 << 20,
        files=("instances_train2017.json", "instances_val2017.json"),
    ),
    Part(
        name="val2017",
        url=f"{_SERVER}/zips/val2017.zip",
        md5="442b8da7639aecaf257c1dceb8ba8c80",
        size=778 << 20,
        unpacked=800 << 20,
        images=5000,
    ),
    Part(
        name="train2017",
        url=f"{_SERVER}/zips/train2017.zip",
        md5="cced6f7f71b7629ddf16f17bbcfab6b2",
        size=18 << 30,
        unpacked=19 << 30,
        images=118287,
    ),
)
_STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"
STUFF = tuple(
    Part(
        name=f"stuffthingmaps/{split}",
        url=f"{_STUFF}/stuffthingmaps_trainval2017.zip",
        md5=None,
        size=659 * 10**6,
        unpacked=6000 * images,
        images=images,
        kind="label maps",
    )
    for split, images in (("val2017", 5000), ("train2017", 118287))
)


def prepare_coco(root: str | Path, parts: Sequence[Part] = PARTS) -> Iterator[str]:
    """Check the existing parts, and fetch the others, each completely or not at all.

    Existing parts are never changed. Downloads are written to root/coco/<archive>.part, which is
    kept if the download is interrupted, resumed the next time, and deleted after unpacking. If
    root/coco already contains the archive, it is used instead, and kept.

    Args:
        root: Folder of the datasets, $DETECTRON2_DATASETS.
        parts: Parts of the dataset.

    Yields:
        Lines that describe what exists and what is done.

    Raises:
        UserError: A part is incomplete, an archive cannot be downloaded or is damaged, or there is
            not enough space.
    """
    folder = Path(root) / "coco"
    missing = [part for part in parts if not _is_there(folder / part.name)]
    for part in parts:
        if part not in missing:
            yield _check(folder / part.name, part)
    if not missing:
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    check_space(folder, _space(folder, missing))
    for i, part in enumerate(missing):
        target = folder / part.name
        keep = any(other.archive == part.archive for other in missing[i + 1 :])
        try:
            with writing(target):
                yield from _fetch(folder, part, keep)
        except Unreachable as e:
            urls = ", ".join(dict.fromkeys(p.url for p in missing[i:]))
            raise UserError(
                f"cannot download {e}. Run this again to resume, or download manually: {urls}; put"
                f" the archives into {folder} and run this again"
            ) from e
        yield _check(target, part)


def _is_there(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _check(folder: Path, part: Part) -> str:
    """Describe a part; raise a UserError if it is incomplete."""
    if lack := _lack(folder, part):
        raise UserError(
            f"{folder} {lack}; move it away or delete it and run this again, or complete it from"
            f" {part.url}"
        )
    holds = f"{part.images:,} {part.kind}" if part.images else ", ".join(part.files)
    return f"{folder} holds {holds}"


def _lack(folder: Path, part: Part) -> str:
    """Return how a folder differs from a complete part; empty if it does not."""
    if lacking := [name for name in part.files if not (folder / name).is_file()]:
        return f"lacks {', '.join(lacking)}"
    suffix = _SUFFIXES[part.kind]
    images = sum(name.endswith(suffix) for name in os.listdir(folder)) if part.images else 0
    return "" if images == part.images else f"holds {images:,} {part.kind}, not {part.images:,}"


def _space(folder: Path, missing: Sequence[Part]) -> int:
    """Return the peak number of bytes that the missing parts will take."""
    archives = [0]
    for part in missing:
        if not (folder / part.archive).is_file():
            begun = folder / f"{part.archive}.part"
            archives.append(part.size - (begun.stat().st_size if begun.is_file() else 0))
    return sum(part.unpacked for part in missing) + max(archives)


def _fetch(folder: Path, part: Part, keep: bool) -> Iterator[str]:
    """Download and unpack a part; raise Unreachable, OSError or UserError on failure.

    Args:
        folder: The folder root/coco.
        part: The part.
        keep: Whether another part needs the downloaded archive.

    Yields:
        Lines that describe what is done.
    """
    target, archive = folder / part.name, folder / part.archive
    downloaded = not archive.is_file()
    if downloaded:
        archive = folder / f"{part.archive}.part"
        # A zip's directory is at its end, so a valid zip is complete, from an earlier run.
        if not (archive.is_file() and zipfile.is_zipfile(archive)):
            yield f"{target}: downloading {part.url} ({format_bytes(part.size)})"
            download(part.url, archive)
    yield f"{target}: unpacking {archive.name} ({format_bytes(part.unpacked)})"
    if part.md5:
        check_md5(archive, part.md5, downloaded)
    else:
        yield (
            f"{target}: no checksum of {archive.name} is published, so none is verified; the CRC"
            " of each file and the number of files are checked"
        )
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as temporary:
        made = Path(temporary) / target.name
        try:
            unpack(archive, target.name, made)
        except (zipfile.BadZipFile, zlib.error, EOFError) as e:
            raise damaged(archive, str(e), downloaded) from e
        if lack := _lack(made, part):
            raise damaged(archive, f"{target.name} {lack}", downloaded)
        os.replace(made, target)
    if downloaded and not keep:
        archive.unlink()
