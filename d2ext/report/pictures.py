"""Read the pictures of a run directory as data URIs, small enough for one page."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from d2ext.report.analysis import captions
from d2ext.report.read import RunRecord

_MAX_PICTURES = 24
_MAX_PICTURE_BYTES = 5_000_000  # total, before base64 adds a third
_MAX_SHEET_BYTES = 1_000_000  # the same for contact sheets
# Long side in pixels and JPEG quality, tried in turn until a picture fits its share.
_PICTURE_SIZES = ((1600, 82), (1280, 78), (960, 72), (720, 60), (480, 40))


def galleries(run: RunRecord, run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the overlays of each dataset: the worst images, the best ones, then others."""
    folders = {dataset: files for dataset, files in run.overlays.items() if files}
    share = max(1, _MAX_PICTURES // max(1, len(folders)))
    budget = _MAX_PICTURE_BYTES // max(1, sum(min(share, len(f)) for f in folders.values()))
    for dataset, files in folders.items():
        analysis = run.analyses.get(dataset)
        by_picture = captions(analysis, share) if analysis else {}
        words = {run_dir / picture: text for picture, text in by_picture.items()}
        rank = {file: i for i, file in enumerate(words)}
        pictures = [
            {"name": file.stem, "uri": _data_uri(file, budget), "text": words.get(file, "")}
            for file in sorted(files, key=lambda file: rank.get(file, len(rank)))[:share]
        ]
        yield {
            "dataset": dataset,
            "total": len(files),
            "pictures": [p for p in pictures if p["uri"]],
        }


def sheets(run: RunRecord, run_dir: Path) -> dict[str, str]:
    """Return the contact sheet of each dataset that has one."""
    budget = _MAX_SHEET_BYTES // max(1, len(run.overviews))
    files = {d: run_dir / "overview" / f"{d}.jpg" for d in run.overviews}
    uris = {d: _data_uri(file, budget) for d, file in files.items() if file.is_file()}
    return {d: uri for d, uri in uris.items() if uri}


def _data_uri(file: Path, budget: int) -> str | None:
    """Return a picture as a data URI of about `budget` bytes of JPEG, or None if it is damaged."""
    try:
        picture = Image.open(file).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    for side, quality in _PICTURE_SIZES:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= budget:
            break
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
