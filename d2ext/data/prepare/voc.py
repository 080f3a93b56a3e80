"""Prepare Pascal VOC where Detectron2 expects it: root/VOC2007 and root/VOC2012."""

import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from d2ext.data.formats.voc import listed_files
from d2ext.data.prepare.download import (
    Unreachable,
    check_md5,
    check_space,
    download,
    format_bytes,
    writing,
)
from d2ext.errors import UserError
from d2ext.text import plural

_LISTS = PurePosixPath("ImageSets/Main")
_READ = (PurePosixPath("JPEGImages"), PurePosixPath("Annotations"), _LISTS)  # lists are last


@dataclass(frozen=True)
class ImageSet:
    """One image set for detection and the archive that holds it.

    Attributes:
        folder: Name of its folder, in root and in the archive's VOCdevkit.
        name: Name of its list, without suffix.
        images: Number of its photos.
        url: URL of the archive, a tar.
        md5: MD5 of the archive, as in torchvision.
        size: Approximate size of the archive, and of the unpacked files, in bytes.
    """

    folder: str
    name: str
    images: int
    url: str
    md5: str
    size: int

    @property
    def part(self) -> str:
        """Return the name of the image set on the command line."""
        return f"{self.folder.removeprefix('VOC')}-{self.name}"

    @property
    def archive(self) -> str:
        """Return the file name of the archive."""
        return self.url.rpartition("/")[2]

    def list_file(self, root: Path) -> Path:
        """Return the path of the list of its photos."""
        return root / self.folder / _LISTS / f"{self.name}.txt"


_SERVER = "https://thor.robots.ox.ac.uk/pascal/VOC"  # torchvision's address of host.robots.ox.ac.uk
IMAGE_SETS = (
    ImageSet(
        folder="VOC2007",
        name="trainval",
        images=5011,
        url=f"{_SERVER}/voc2007/VOCtrainval_06-Nov-2007.tar",
        md5="c52e279531787c972589f7e41ab4ae64",
        size=460 * 10**6,
    ),
    ImageSet(
        folder="VOC2007",
        name="test",
        images=4952,
        url=f"{_SERVER}/voc2007/VOCtest_06-Nov-2007.tar",
        md5="b6e924de25625d8de591ea690078ad9f",
        size=451 * 10**6,
    ),
    ImageSet(
        folder="VOC2012",
        name="trainval",
        images=11540,
        url=f"{_SERVER}/voc2012/VOCtrainval_11-May-2012.tar",
        md5="6cd6e144f989b92b3379bac3b3de84fd",
        size=2000 * 10**6,
    ),
)


def prepare_voc(root: str | Path, image_sets: Sequence[ImageSet] = IMAGE_SETS) -> Iterator[str]:
    """Check the existing image sets, and fetch the others.

    Downloads are written to root/<archive>.part, which is kept if the download is interrupted,
    resumed the next time, and deleted after unpacking. If root already contains the archive, it is
    used instead, and kept. The list of an image set is written after its photos and annotations, so
    that an image set with a list is complete. Segmentations and layouts are not unpacked.

    Args:
        root: Folder of the datasets, $DETECTRON2_DATASETS.
        image_sets: Image sets to prepare.

    Yields:
        Lines that describe what exists and what is done.

    Raises:
        UserError: An image set is incomplete, an archive cannot be downloaded or has the wrong MD5,
            or there is not enough space.
    """
    root = Path(root)
    missing = [one for one in image_sets if not one.list_file(root).is_file()]
    for one in image_sets:
        if one not in missing:
            yield _check(root, one)
    if not missing:
        return
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    # Each archive is deleted after unpacking, so that only the largest counts twice.
    archives = [one.size for one in missing if not (root / one.archive).is_file()]
    check_space(root, sum(one.size for one in missing) + max(archives, default=0))
    for one in missing:
        try:
            with writing(root / one.folder):
                yield from _fetch(root, one)
        except Unreachable as e:
            urls = ", ".join(s.url for s in missing if not s.list_file(root).is_file())
            raise UserError(
                f"cannot download {e}. Run this again to resume, or download manually: {urls}; put"
                f" the archives into {root} and run this again"
            ) from e
        yield _check(root, one)


def _check(root: Path, one: ImageSet) -> str:
    """Describe an image set; raise a UserError if it is incomplete."""
    folder, list_file = root / one.folder, one.list_file(root)
    listed = listed_files(folder / "Annotations", list_file)
    photos = set(os.listdir(folder / "JPEGImages")) if (folder / "JPEGImages").is_dir() else set()
    lacking = []
    if len(listed) != one.images:
        lacking.append(f"lists {plural(len(listed), 'photo')}, not {one.images:,}")
    for what, absent in (
        ("annotation", [file.name for _, file in listed if not file.is_file()]),
        ("photo", [f"{name}.jpg" for name, _ in listed if f"{name}.jpg" not in photos]),
    ):
        if absent:
            lacking.append(f"lacks {plural(len(absent), what)}, the first is {absent[0]}")
    if lacking:
        raise UserError(
            f"{list_file} {' and '.join(lacking)}; delete this list and run this again to complete"
            f" the image set from {one.url}"
        )
    return f"{folder} holds the {one.images:,} photos of {one.name} with their annotations"


def _fetch(root: Path, one: ImageSet) -> Iterator[str]:
    """Download and unpack an image set; raise Unreachable, OSError or UserError on failure."""
    archive = by_hand = root / one.archive
    if not by_hand.is_file():
        archive = root / f"{one.archive}.part"
        yield f"{one.part}: downloading {one.url} ({format_bytes(one.size)})"
        download(one.url, archive)
    yield f"{one.part}: unpacking {archive.name}"
    check_md5(archive, one.md5, downloaded=archive is not by_hand)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=root) as temporary:
        _unpack(archive, one.folder, Path(temporary))
        for part in _READ:
            target = root / one.folder / part
            target.mkdir(parents=True, exist_ok=True)
            for file in (Path(temporary) / part).iterdir():
                os.replace(file, target / file.name)
    if archive is not by_hand:
        archive.unlink()


def _unpack(archive: Path, folder: str, target: Path) -> None:
    """Unpack the photos, annotations and lists of an archive to `target`."""
    for part in _READ:
        (target / part).mkdir(parents=True)
    inside = {PurePosixPath("VOCdevkit", folder, part): part for part in _READ}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if member.isfile() and path.parent in inside and not path.name.startswith("."):
                member.name = str(inside[path.parent] / path.name)
                tar.extract(member, target, filter="data")
