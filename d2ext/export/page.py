"""Write a trained model as one HTML page, which runs it in a browser without a network."""

import base64
import gzip
import hashlib
import json
import math
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from markupsafe import Markup

from d2ext import report
from d2ext.errors import UserError
from d2ext.export.verify import TOLERANCES
from d2ext.files import atomic_write
from d2ext.html import page_template
from d2ext.predict.onnx_info import ModelInfo, from_metadata
from d2ext.text import plural

_HERE = Path(__file__).parent
_RUNTIME = _HERE / "onnxruntime_web"
_WASM = "ort-wasm-simd-threaded"


def write_page(model_file: Path, output: Path) -> None:
    """Write one self-contained HTML page that detects objects in photos with an exported model.

    The page contains the model, ONNX Runtime Web and the code around them. Its security policy
    forbids every connection, so that it works from a disk and photos cannot leave the computer.

    Args:
        model_file: ONNX file written by `d2ext export`, preferably with weights in float16, which
            make the page smaller.
        output: Path of the page.

    Raises:
        UserError: The model is missing, damaged or not from `d2ext export`, or the page cannot be
            written.
    """
    content, info = _read(model_file)
    runtime = (_RUNTIME / "ort.wasm.min.js").read_bytes()
    script = _code("masks.js", "turn.js", "draw.js", "page.js")
    style = Path(report.__file__).with_name("style.html").read_text("utf-8") + _code("page.css")
    page = page_template(_HERE / "page.html").render(
        title=info.provenance.run or info.architecture,
        summary=" · ".join(_summary(info)),
        facts=list(_facts(info)),
        limits=list(_limits(info)),
        lowest=math.floor(round(100 * info.score_threshold, 6)) / 100,
        shown=max(info.shown_score_threshold, info.score_threshold),
        about=_embedded(info),
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        worker=Markup(_code("resize.js", "turn.js", "photo.js", "worker.js")),
        packed={
            "runtime": _packed(gzip.compress(runtime, mtime=0)),
            "glue": _packed(gzip.compress((_RUNTIME / f"{_WASM}.mjs").read_bytes(), mtime=0)),
            "wasm": _packed((_RUNTIME / f"{_WASM}.wasm.gz").read_bytes()),
            "onnx": _packed(gzip.compress(content, mtime=0)),
            "notices": _packed((_RUNTIME / "ThirdPartyNotices.txt.gz").read_bytes()),
        },
        runtime_version=re.search(rb"Web v([\d.]+)", runtime)[1].decode(),
        license=(_RUNTIME / "LICENSE").read_text("utf-8"),
    )
    with atomic_write(output, "wb") as f:
        f.write(page.encode())


def _read(model_file: Path) -> tuple[bytes, ModelInfo]:
    """Return the content and the metadata of an ONNX file."""
    import onnx  # imported here, because only exports need it

    try:
        content = model_file.read_bytes()
        model = onnx.load_model_from_string(content)
    except OSError as e:
        raise UserError(f"cannot read {model_file}: {e.strerror or e}; export the run again") from e
    except Exception as e:  # of protobuf, whose errors differ between its implementations
        raise UserError(f"{model_file} is damaged ({e}); export the run again") from e
    entries = {entry.key: entry.value for entry in model.metadata_props}
    return content, from_metadata(entries, str(model_file))


def _code(*names: str) -> str:
    return "\n".join((_HERE / "web" / name).read_text("utf-8") for name in names)


def _hash(text: str) -> Markup:
    """Return the source of a security policy that allows a script or style."""
    digest = hashlib.sha256(text.encode()).digest()
    return Markup("sha256-" + base64.b64encode(digest).decode())


def _packed(content: bytes) -> Markup:
    return Markup(base64.b64encode(content).decode())


def _embedded(info: ModelInfo) -> Markup:
    """Return the metadata that the page's code uses, as JSON inside a script element."""
    names = ("classes", "channels", "short_edge", "max_size", "mask_size", "mask_threshold")
    text = json.dumps({name: getattr(info, name) for name in names})
    return Markup(text.replace("<", "\\u003c"))


def _summary(info: ModelInfo) -> Iterator[str]:
    yield f"{info.architecture} for {plural(len(info.classes), 'class')}"
    if info.provenance.created:
        yield f"exported {_date(info.provenance.created)}"
    yield "runs in this browser, without a network"


def _facts(info: ModelInfo) -> Iterator[tuple[str, str]]:
    origin = info.provenance
    yield "Classes", ", ".join(info.classes)
    yield "Model", info.architecture
    yield "Config", origin.config
    averaged = " (averaged over the training steps)" if origin.averaged else ""
    yield "Weights", origin.weights and f"{origin.weights}{averaged}"
    yield "SHA-256 of the weights", origin.weights_sha256
    yield "Weights are stored in", info.precision
    size = f"short side {info.short_edge} pixels, long side at most {info.max_size}"
    yield "Photos are resized to", size
    yield "Versions", ", ".join(f"{name} {version}" for name, version in origin.versions.items())


def _limits(info: ModelInfo) -> Iterator[str]:
    """Yield what a user of the page needs to know."""
    if info.precision == "float16":
        limits = TOLERANCES["float16"]
        yield (
            "The model is stored at half precision. Compared with the trained model, boxes may"
            f" differ by up to {limits['boxes']:g} pixels of the resized photo and scores by up to"
            f" {limits['scores']:g} for at least {limits['within']:.0%} of the objects; objects"
            " close to the lowest score may appear or vanish."
        )
    yield (
        f"At most {info.max_objects} objects are found in a photo, with scores of at least"
        f" {info.score_threshold:g}."
    )
    yield (
        "The model runs on one core of this computer's processor, one photo at a time. Pictures"
        " are shown and saved with a long side of at most 4096 pixels; predictions.json always"
        " refers to the pixels of the photo."
    )
    yield (
        "The browser decodes the photos: JPEG, PNG, WebP, GIF, BMP and usually AVIF; only the"
        " first frame of an animation is used. TIFF and HEIC work only in Safari, camera raw files"
        " nowhere."
    )
    yield (
        "Files that are damaged or cut off, and photos of more than 179 megapixels, are skipped."
        " Photos whose colors the browser may decode differently have a note: CMYK, transparency,"
        " 16 bits per channel."
    )
    yield (
        "The page needs a browser of 2023 or later: Chrome or Edge 113, Firefox 113, Safari 17. It"
        " is tested in Chromium."
    )


def _date(iso: str) -> str:
    try:
        return f"{datetime.fromisoformat(iso):%-d %B %Y}"
    except ValueError:
        return iso
