"""Download a file, resume interrupted downloads, and unpack archives."""

import contextlib
import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from d2ext.errors import UserError
from d2ext.terminal import progress
from d2ext.waiting import waiting_for

_TIMEOUT = 10  # seconds without a response; short, so that a missing network is reported soon


class Unreachable(Exception):
    """The file cannot be downloaded: no network, no such server or file, or a broken connection."""


def download(url: str, path: Path) -> None:
    """Download `url` to `path`, with a progress bar in a terminal.

    If `path` exists, it is assumed to be the beginning of the file, and only the rest is requested.
    A server without support for ranges (RFC 9110) sends the whole file again. The caller must
    verify a checksum, because the file on the server may have changed in between.

    Raises:
        Unreachable: The file cannot be downloaded completely; `path` keeps what was received.
        OSError: `path` cannot be written.
    """
    with waiting_for(f"the download of {url}", "Ctrl-C gives up; the same command resumes it"):
        _download(url, path)


def _download(url: str, path: Path) -> None:
    here = path.stat().st_size if path.exists() else 0
    response = _open(url, here)
    if response is None:
        return
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        here = 0
    size = here + int(response.headers.get("Content-Length") or 0)
    total = size if size > here else None
    shown = progress(Path(url).name, total, here, in_bytes=True)
    with response, shown as advance, open(path, "r+b" if here else "wb") as f:
        f.seek(here)
        while chunk := _read(response, url):
            advance(f.write(chunk))
        received = f.tell()
    if received < size:
        raise Unreachable(f"{url}: the connection broke after {received} of {size} bytes")


def _open(url: str, here: int) -> http.client.HTTPResponse | None:
    """Return the response with the bytes after `here` or the whole file; None if none are left."""
    headers = {"Range": f"bytes={here}-"} if here else {}
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT
        )
    except urllib.error.HTTPError as e:
        e.close()
        if here and e.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            # `bytes */<size>`: the file is complete, or `path` is not its beginning.
            whole = e.headers.get("Content-Range", "").rpartition("/")[2] == str(here)
            return None if whole else _open(url, 0)
        raise Unreachable(f"{url}: {e.code} {e.reason}") from e
    except (OSError, http.client.HTTPException) as e:  # URLError is an OSError
        raise Unreachable(f"{url}: {getattr(e, 'reason', None) or e}") from e
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if start != str(here):
            response.close()
            return _open(url, 0)
    return response


def _read(response: http.client.HTTPResponse, url: str) -> bytes:
    # Separate from writing, whose OSErrors have another meaning.
    try:
        return response.read(1 << 16)
    except (OSError, http.client.HTTPException) as e:
        raise Unreachable(f"{url}: the connection broke ({e})") from e


def unpack(archive: Path, folder: str, target: Path) -> None:
    """Unpack the files directly in `folder` of a zip to the new folder `target`.

    Hidden files, other folders (such as __MACOSX) and paths outside `folder` are skipped.

    Raises:
        OSError: `target` cannot be written.
        zipfile.BadZipFile, zlib.error, EOFError, RuntimeError: the zip is damaged.
    """
    target.mkdir(parents=True)
    with (
        zipfile.ZipFile(archive) as z,
        progress(f"unpacking {folder}", len(z.infolist())) as advance,
    ):
        for member in z.infolist():
            advance()
            path = PurePosixPath(member.filename)
            if (
                path.parent == PurePosixPath(folder)
                and not member.is_dir()
                and not path.name.startswith(".")
            ):
                with z.open(member) as source, open(target / path.name, "wb") as f:
                    shutil.copyfileobj(source, f)


def check_md5(archive: Path, md5: str, downloaded: bool) -> None:
    """Check the MD5 of an archive, which detects damage, but not attacks.

    Args:
        archive: Path of the archive.
        md5: MD5 that its authors publish.
        downloaded: Whether d2ext downloaded the archive; it is deleted if it is damaged.

    Raises:
        UserError: The archive is damaged.
    """
    with open(archive, "rb") as f:
        found = hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise damaged(archive, f"md5 {found}, not {md5}", downloaded)


def damaged(archive: Path, reason: str, downloaded: bool) -> UserError:
    """Return the error for a damaged archive, and delete the archive if d2ext downloaded it.

    Args:
        archive: Path of the archive.
        reason: What is wrong with it.
        downloaded: Whether d2ext downloaded the archive.
    """
    remedy = "delete it or replace it"
    if downloaded:
        archive.unlink()
        remedy = "it was deleted"
    return UserError(f"{archive} is damaged ({reason}); {remedy}, and run this again")


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Convert an OSError while writing `target` to a UserError that names it."""
    try:
        yield
    except OSError as e:
        raise UserError(
            f"cannot write {target}: {e.strerror or e}; free space, or choose another folder with"
            " --root"
        ) from e


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError unless `needed` bytes are free on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{os.fspath(folder)} has {format_bytes(free)} free, but {format_bytes(needed)} are"
            " needed; free space, or choose another folder with --root"
        )


def format_bytes(size: int) -> str:
    """Format a number of bytes in a decimal unit with 3 digits."""
    unit = next(u for u in ("TB", "GB", "MB", "KB") if size >= _UNITS[u] or u == "KB")
    return f"{size / _UNITS[unit]:.3g} {unit}"


_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3}
