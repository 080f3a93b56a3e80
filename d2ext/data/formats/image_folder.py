"""Finds the images that annotation files name, as other people's machines and tools named them."""

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
    """A folder of images.

    Args:
        root: the folder.
    """

    def __init__(self, root: str | Path):
        self._root = root
        self._names: dict[str, str] = {}  # of each image that was found, by what name

    def find(self, name: str | None, where: object, folder: str = "", namesake: str = "") -> str:
        """Return the path of an image as `look_up` does.

        Args:
            name: as the annotation file has it; None if it names no image.
            where: the place in the annotation file, for messages.
            folder: the subfolder in which the image is looked for first.
            namesake: name of the annotation file without its suffix; the image of that name is
                taken if `name` leads to none.

        Raises:
            UserError: there is no such image in the folder, or it could be several.
        """
        if found := self.look_up(name, where, folder):
            return found
        if namesake and (found := self._namesake(namesake, where, folder)):
            return found
        raise UserError(
            f"{where}: the image {truncate_repr(name or namesake)} is not in the image folder"
            f" {self._root};"
            " correct the name, or --images"
        )

    def find_all(self, entries: Sequence[tuple[str | None, Path, str]]) -> list[str]:
        """Return the paths of the images of annotation files that have one image each.

        If several files name the same image, those whose own name is another image's are of that:
        annotation tools keep the old name in copied or renamed files. A warning counts them.

        Args:
            entries: of each file the name of its image, its path, and the subfolder that its image
                is looked for in first.

        Raises:
            UserError: an image is absent or could be several, or several files are of one.
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
                "%d annotation files name the image of another file; each is read for the image of"
                " its own name",
                corrected,
            )
        return found

    def _namesake(self, stem: str, where: object, folder: str) -> str | None:
        """Return the image that has the name of its annotation file."""
        places = (os.path.join(place, stem) for place in (folder, ""))
        return next((found for place in places if (found := self._alike(place, where))), None)

    def look_up(self, name: object, where: object, folder: str = "") -> str | None:
        """Return the path of the image that an annotation file names, None if there is none.

        The name may be an absolute, Windows or URL-quoted path of another machine, lack its
        suffix, or differ in suffix, case or Unicode form: the folders that it begins with are
        dropped until the rest is in this folder.

        Args:
            name: as the annotation file has it.
            where: the place in the annotation file, for messages.
            folder: the subfolder in which the image is looked for first.

        Raises:
            UserError: it could be several images, or another name has led to the same one.
        """
        for variant in _variants(name):
            if found := self._found(variant, where, dict.fromkeys((folder, ""))):
                other = self._names.setdefault(found, variant)
                if other != variant and _plain(other) != _plain(variant):
                    raise UserError(
                        f"{where}: the images {truncate_repr(variant)} and"
                        f" {truncate_repr(other)} would both be"
                        f" {found}; correct the names"
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
        except UserError:  # it leads out of the folder
            return None
        return path if os.path.isfile(path) else None

    def _alike(self, name: str, where: object) -> str | None:
        return self._one(self._by_path, name, where)

    def _one(self, known: dict[str, list[str]], name: str, where: object) -> str | None:
        """Return the one image whose name differs at most in case, Unicode form and suffix."""
        stem, suffix = os.path.splitext(name)
        found = known.get(folded(name)) or known.get(folded(stem)) or []
        same = [f for f in found if os.path.splitext(f)[1].lower() == suffix.lower()]
        found = same or found
        if len(found) > 1:
            raise UserError(
                f"{where}: the image {truncate_repr(name)} could be {found[0]} or {found[1]} in"
                f" {self._root}; name the file exactly"
            )
        return os.path.join(self._root, found[0]) if found else None

    @cached_property
    def _by_path(self) -> dict[str, list[str]]:
        """The images by their folded path without suffix."""
        names = defaultdict(list)
        for name in images_in(self._root):
            names[folded(os.path.splitext(name)[0])].append(name)
        return dict(names)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """The images by their folded name without folder and suffix."""
        names = defaultdict(list)
        for path, images in self._by_path.items():
            names[os.path.basename(path)] += images
        return dict(names)


def tails(name: str, root: str | Path) -> Iterator[str]:
    """Yield a path of another machine without its first folders: a/b/c, b/c, c.

    It stops at a folder beside `root`: `images/val/a.jpg` is not an image of `images/train`.
    """
    parts, folder = _parts(name), os.path.abspath(root)
    for i in range(len(parts)):
        beside = os.path.join(os.path.dirname(folder), parts[i - 1]) if i else folder
        if os.path.isdir(beside) and os.path.realpath(beside) != os.path.realpath(folder):
            return
        yield "/".join(parts[i:])


def _parts(name: str) -> list[str]:
    """Split a path of any system, without its drive and steps upward."""
    path = PureWindowsPath(name)  # takes both kinds of separators
    parts = os.path.normpath(path.relative_to(path.anchor).as_posix()).split("/")
    return [part for part in parts if part not in ("", ".", "..")]


def _variants(name: object) -> Iterator[str]:
    """Yield a name as it stands and, if that differs, as the path of a URL."""
    if not isinstance(name, str):
        return
    yield name
    with contextlib.suppress(ValueError):
        if (path := unquote(urlsplit(name).path)) != name:
            yield path


def _plain(name: str) -> list[str]:
    return _parts(unicodedata.normalize("NFC", name))


def folded(name: str) -> str:
    """Return a name without differences in case and Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


def sized_record(path: str, image_id: int, size: tuple[float, float] | None, where: object) -> dict:
    """Make a dataset dict of an image whose width and height an annotation file states, or not.

    Raises:
        UserError: the image is absent, broken or of another size: then its shapes lie elsewhere.
    """
    try:
        actual = image_size(path)
    except FileNotFoundError:
        raise UserError(f"{where}: the image {path} is absent; check --images") from None
    if size is not None and tuple(size) != actual:
        raise UserError(
            f"{where} is for an image of {size[0]:g} x {size[1]:g} pixels, {path} has"
            f" {actual[0]} x {actual[1]} (turned as its EXIF orientation says, where it has one);"
            " use the image that was annotated, or annotate it again"
        )
    return new_record(path, image_id, actual)
