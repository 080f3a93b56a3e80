"""Downloads a file going on where an earlier attempt broke off; unpacks it."""

import contextlib
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

_TIMEOUT = 10  # seconds without an answer or a byte; a machine without a network shall not wait


class Unreachable(Exception):
    """The file cannot be fetched: no network, no such server or file, or the connection broke."""


def download(url: str, path: Path) -> None:
    """Write what `url` holds to `path`; a terminal sees a bar.

    What `path` holds already is taken for the beginning of it, and only the rest is asked for. A
    server that cannot give a part (RFC 9110, Range) sends all of it anew. Whether the parts belong
    together, only a checksum can say.

    Raises:
        Unreachable: see there. What has arrived remains in `path`.
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
        raise Unreachable(f"{url}: the connection broke off after {received} of {size} bytes")


def _open(url: str, here: int) -> http.client.HTTPResponse | None:
    """Return the answer with the bytes from `here` on, or with all; None if there are no more."""
    headers = {"Range": f"bytes={here}-"} if here else {}
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT
        )
    except urllib.error.HTTPError as e:
        e.close()
        if here and e.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            # `bytes */<size>`: either all is here, or what is here is something else.
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
    # Apart from the writing, whose OSErrors mean something else.
    try:
        return response.read(1 << 16)
    except (OSError, http.client.HTTPException) as e:
        raise Unreachable(f"{url}: the connection broke off ({e})") from e


def unpack(archive: Path, folder: str, target: Path) -> None:
    """Write the files that a zip holds directly in `folder` to the new folder `target`.

    Nothing else: no path outside, no __MACOSX, no .DS_Store.

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


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn an OSError while `target` is made into a UserError that names it."""
    try:
        yield
    except OSError as e:
        raise UserError(
            f"cannot write {target}: {e.strerror or e}; free space, or choose another folder with"
            " --root"
        ) from e


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError unless `needed` bytes are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{os.fspath(folder)} has {format_bytes(free)} free, {format_bytes(needed)} are"
            " needed; free"
            " space, or choose another folder with --root"
        )


def format_bytes(size: int) -> str:
    """Bytes as a file manager says it."""
    unit = next(u for u in ("TB", "GB", "MB", "KB") if size >= _UNITS[u] or u == "KB")
    return f"{size / _UNITS[unit]:.3g} {unit}"


_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3}
