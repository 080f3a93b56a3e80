"""Downloads a file with a progress bar."""

import http.client
import urllib.request
from pathlib import Path

from tqdm import tqdm

_TIMEOUT = 10  # seconds without an answer or a byte; a machine without a network shall not wait


class Unreachable(Exception):
    """The file cannot be fetched: no network, no such server or file, or the connection broke."""


def download(url: str, path: Path) -> None:
    """Writes what `url` holds to `path`; the bar goes to stderr.

    Raises:
        Unreachable: see there. What has arrived remains in `path`.
        OSError: `path` cannot be written.
    """
    try:
        response = urllib.request.urlopen(url, timeout=_TIMEOUT)
    except (OSError, http.client.HTTPException) as e:  # URLError is an OSError
        raise Unreachable(f"{url}: {getattr(e, 'reason', None) or e}") from e
    size = int(response.headers.get("Content-Length") or 0)
    # disable=None: no bar where stderr is a log file.
    bar = tqdm(desc=Path(url).name, total=size or None, unit="B", unit_scale=True, disable=None)
    with response, bar, open(path, "wb") as f:
        while chunk := _read(response, url):
            bar.update(f.write(chunk))
        received = f.tell()
    if received < size:
        raise Unreachable(f"{url}: the connection broke off after {received} of {size} bytes")


def _read(response: http.client.HTTPResponse, url: str) -> bytes:
    # Apart from the writing, whose OSErrors mean something else.
    try:
        return response.read(1 << 16)
    except (OSError, http.client.HTTPException) as e:
        raise Unreachable(f"{url}: the connection broke off ({e})") from e
