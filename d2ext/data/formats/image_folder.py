"""Find the images that annotation files name, even by paths of other machines and tools."""

import contextlib
import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote, urlsplit

from d2ext.data.formats.geometry import new_record
from d2ext.data.formats.images import existing, image_size, images_in
from d2ext.data.formats.json_io import inside, truncate_repr
from d2ext.errors import UserError

logger = logging.getLogger(__name__)


class ImageFolder:
    """A folder in which images are looked up by the names in annotation files.

    Args:
        root: Path of the folder.
    """

    def __init__(self, root: str | Path):
        self._root = root
        self._names: dict[str, str] = {}  # path of each image found so far -> name that led to it

    def find(self, name: str | None, where: object, folder: str = "", namesake: str = "") -> str:
        """Return the path of an image like `look_up`, or raise an error.

        Args:
            name: Image name in the annotation file; None if the file names no image.
            where: Location in the annotation file, for messages.
            folder: Subfolder to search first.
            namesake: Name of the annotation file without suffix; used if `name` matches no image.

        Raises:
            UserError: No image in the folder matches, or several do.
        """
        if found := self.look_up(name, where, folder):
            return found
        if namesake and (found := self._namesake(namesake, where, folder)):
            return found
        raise UserError(
            f"{where}: the image {truncate_repr(name or namesake)} is not in the image folder"
            f" {self._root}; correct the name, or --images"
        )

    def find_all(self, entries: Sequence[tuple[str | None, Path, str]]) -> list[str]:
        """Return the image paths of annotation files that describe one image each.

        If several files name the same image, those whose file name matches another image are used
        for that image, because annotation tools keep the old name in copied or renamed files. A
        warning counts them.

        Args:
            entries: For each annotation file, the name of its image, its path, and the subfolder
                to search first.

        Raises:
            UserError: An image is missing or ambiguous, or several files describe the same one.
        """
        found = [self.find(name, file, folder, file.stem) for name, file, folder in entries]
        times = Counter(found)
        corrected = 0
        for i, (_, file, folder) in enumerate(entries):
            if times[found[i]] > 1 and (own := self._namesake(file.stem, file, folder)):
                corrected += own != found[i]
                found[i] = own
        seen: dict[str, Path] = {}
        for (_, file, _), path in zip(entries, found, strict=True):
            if path in seen:
                raise UserError(
                    f"{file} and {seen[path]} describe the same image {path}; remove one"
                )
            seen[path] = file
        if corrected:
            logger.warning(
                "%d annotation files name the image of another file; each is used for the image"
                " that has its own name",
                corrected,
            )
        return found

    def _namesake(self, stem: str, where: object, folder: str) -> str | None:
        """Return the image with the same name as its annotation file, if there is one."""
        places = (os.path.join(place, stem) for place in (folder, ""))
        return next((found for place in places if (found := self._alike(place, where))), None)

    def look_up(self, name: object, where: object, folder: str = "") -> str | None:
        """Return the path of an image that an annotation file names, or None if it is not found.

        The name may be an absolute, Windows or URL-quoted path from another machine, lack its
        suffix, or differ in suffix, case or Unicode form. Leading folders are dropped until the
        rest of the path exists in this folder.

        Args:
            name: Image name in the annotation file.
            where: Location in the annotation file, for messages.
            folder: Subfolder to search first.

        Raises:
            UserError: Several images match, or another name already matched the same image.
        """
        for variant in _variants(name):
            if found := self._found(variant, where, dict.fromkeys((folder, ""))):
                other = self._names.setdefault(found, variant)
                if other != variant and _plain(other) != _plain(variant):
                    raise UserError(
                        f"{where}: the images {truncate_repr(variant)} and"
                        f" {truncate_repr(other)} both match {found}; correct the names"
                    )
                return found
        return None

    def _found(self, name: str, where: object, places: Iterable[str]) -> str | None:
        for place in places:
            if found := self._exact(os.path.join(place, name)):
                return found
        for tail in tails(name, self._root):
            for place in places:
                path = os.path.join(place, tail)
                if found := self._exact(path) or self._alike(path, where):
                    return found
        return self._one(self._by_name, name, where) if len(_parts(name)) == 1 else None

    def _exact(self, name: str) -> str | None:
        try:
            path = existing(inside(self._root, name, ""))
        except UserError:  # the path leads out of the folder
            return None
        return path if os.path.isfile(path) else None

    def _alike(self, name: str, where: object) -> str | None:
        return self._one(self._by_path, name, where)

    def _one(self, known: dict[str, list[str]], name: str, where: object) -> str | None:
        """Return the only image whose name differs at most in case, Unicode form and suffix."""
        stem, suffix = os.path.splitext(name)
        found = known.get(folded(name)) or known.get(folded(stem)) or []
        same = [f for f in found if os.path.splitext(f)[1].lower() == suffix.lower()]
        found = same or found
        if len(found) > 1:
            raise UserError(
                f"{where}: the image {truncate_repr(name)} could be {found[0]} or {found[1]} in"
                f" {self._root}; give the exact file name"
            )
        return os.path.join(self._root, found[0]) if found else None

    @cached_property
    def _by_path(self) -> dict[str, list[str]]:
        """Index the images by folded path without suffix."""
        names = defaultdict(list)
        for name in images_in(self._root):
            names[folded(os.path.splitext(name)[0])].append(name)
        return dict(names)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Index the images by folded name without folder and suffix."""
        names: dict[str, list[str]] = defaultdict(list)
        for path, images in self._by_path.items():
            names[os.path.basename(path)] += images
        return dict(names)


def tails(name: str, root: str | Path) -> Iterator[str]:
    """Yield a path from another machine with ever fewer leading folders: a/b/c, b/c, c.

    Stop at a sibling folder of `root`: `images/val/a.jpg` is not an image in `images/train`.
    """
    parts, folder = _parts(name), os.path.abspath(root)
    for i in range(len(parts)):
        beside = os.path.join(os.path.dirname(folder), parts[i - 1]) if i else folder
        if os.path.isdir(beside) and os.path.realpath(beside) != os.path.realpath(folder):
            return
        yield "/".join(parts[i:])


def _parts(name: str) -> list[str]:
    """Split a path from any operating system, and drop its drive and `..` parts."""
    path = PureWindowsPath(name)  # accepts both kinds of separators
    parts = os.path.normpath(path.relative_to(path.anchor).as_posix()).split("/")
    return [part for part in parts if part not in ("", ".", "..")]


def _variants(name: object) -> Iterator[str]:
    """Yield a name unchanged and, if different, read as the path of a URL."""
    if not isinstance(name, str):
        return
    yield name
    with contextlib.suppress(ValueError):
        if (path := unquote(urlsplit(name).path)) != name:
            yield path


def _plain(name: str) -> list[str]:
    return _parts(unicodedata.normalize("NFC", name))


def folded(name: str) -> str:
    """Normalize a name so that case and Unicode form do not matter."""
    return unicodedata.normalize("NFC", name).casefold()


def sized_record(path: str, image_id: int, size: tuple[float, float] | None, where: object) -> dict:
    """Return the dataset dict of an image, and check the size that an annotation file may state.

    Raises:
        UserError: The image is missing, damaged, or of another size, so that shapes would not fit.
    """
    try:
        actual = image_size(path)
    except FileNotFoundError:
        raise UserError(f"{where}: the image {path} does not exist; check --images") from None
    if size is not None and tuple(size) != actual:
        raise UserError(
            f"{where} is for an image of {size[0]:g} x {size[1]:g} pixels, but {path} has"
            f" {actual[0]} x {actual[1]} (rotated by its EXIF orientation, if any); use the image"
            " that was annotated, or annotate this one again"
        )
    return new_record(path, image_id, actual)
