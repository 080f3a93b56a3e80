"""Export a trained model: write the file, prove that it equals the model in torch, record that."""

import logging
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace
from torch import nn

from d2ext.errors import UserError
from d2ext.export import verify
from d2ext.export.detector import build_detector
from d2ext.export.layers import prepared
from d2ext.export.metadata import describe
from d2ext.export.onnx_file import check_packages, write_onnx
from d2ext.files import atomic_write
from d2ext.predict.onnx_model import OnnxModel
from d2ext.predict.predictor import load_trained
from d2ext.report import write_report
from d2ext.run_dir.schema import ExportRecord, ExportsRecord, read_valid_part, write_record

logger = logging.getLogger(__name__)

RUNNER = "run_onnx.py"
_UNVERIFIED = ".unverified"
_RECORD = "export.json"
# Detectron2's layers on the CPU: onnxruntime is compared with them, and the exporter knows them.
_STOCK = ("+train.device=cpu", "+train.fast_layers=false", "+train.channels_last=false")


def export_model(
    config_file: str | Path,
    weights: str | None = None,
    overrides: Sequence[str] = (),
    *,
    output: Path | None = None,
    half: bool = False,
    page: Path | None = None,
    images: Sequence[Path] = (),
) -> bool:
    """Export a trained model as an ONNX file, and verify the file with onnxruntime.

    On success, `run_onnx.py`, which runs the file without torch, and the proof (JSON) are written
    beside it. The proof is also in the run directory, for the report.

    Args:
        config_file: A run's config.yaml, or a recipe.
        weights: `best` or `last` of the run, or a file; by default, the best if there is one.
        overrides: Overrides of the config, `key=value`.
        output: File to write; by default, `export/model.onnx` in the run directory, or
            `export/model_float16.onnx` at half precision.
        half: Store the weights at half precision.
        page: HTML page with the model to write; the model is then stored at half precision.
        images: Photos, and folders of photos, to verify with; if it is empty, the validation set.

    Returns:
        Whether the file passed. If not, it is named `<file>.unverified`, and no page is written.

    Raises:
        UserError: A package is missing, the model cannot be exported, or a file cannot be read or
            written.
    """
    check_packages()
    half = half or page is not None
    trained = load_trained(config_file, weights, [*overrides, *_STOCK])
    detector = build_detector(prepared(trained.model)).eval()
    info = describe(trained, detector)
    info.precision = "float16" if half else "float32"
    name = "model_float16.onnx" if half else "model.onnx"
    file = output or trained.folder / "export" / name
    for path in (file, file.with_name(RUNNER), file.with_suffix(".json"), page):
        if path and path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder; give the path of a file")
    photos = verify.Photos(trained.cfg, images) if images else verify.ValidationSet(trained)
    unverified = file.with_name(f"{file.name}{_UNVERIFIED}")
    logger.info("Exporting %s of %s to %s", info.architecture, trained.weights, file)
    write_onnx(detector, info, unverified)
    try:
        proof = prove(trained.model, unverified, file, photos)
    except BaseException:
        unverified.unlink(missing_ok=True)
        raise
    try:
        if page and not proof.failures:
            from d2ext.export.page import write_page

            write_page(file, page)
            proof.page = str(page)
            logger.info("%s: %.1f MB", page, page.stat().st_size / 1e6)
    finally:
        _record(trained.folder, proof)
    return not proof.failures


def prove(
    model: nn.Module, unverified: Path, file: Path, images: verify.Photos | verify.ValidationSet
) -> ExportRecord:
    """Compare a written file with the model in torch; if it passes, rename it to `file`.

    On success, the runner and the proof (JSON) are written beside it.

    Args:
        model: Model in torch.
        unverified: File to verify.
        file: Its name if it passes.
        images: Images to run both on.

    Returns:
        The proof, with the path that the file has now.

    Raises:
        UserError: A photo cannot be read, or a file cannot be written.
    """
    failed = unverified.with_name(f"{unverified.name}.json")
    failed.unlink(missing_ok=True)  # of an earlier export
    exported = OnnxModel(unverified)
    logger.info("Comparing the file with the model in torch, on the CPU: %s", images)
    proof = verify.verify(model, exported, images, exported.info, unverified)
    for line in verify.lines(proof):
        logger.info("%s", line)
    if proof.failures:
        for failure in proof.failures:
            logger.error("%s", failure)
        write_record(failed, replace(proof, file=unverified.name))
        logger.error("the export failed its verification; the file is kept as %s", unverified)
        return proof
    proof.file = str(file)
    runner = file.with_name(RUNNER)
    with atomic_write(runner, "wb") as f:
        f.write(Path(__file__).with_name(RUNNER).read_bytes())
    write_record(file.with_suffix(".json"), replace(proof, file=file.name))
    try:
        unverified.replace(file)
    except OSError as e:
        raise UserError(f"cannot write {file}: {e.strerror or e}; choose another --output") from e
    size = proof.bytes / 1e6
    logger.info("%s: %.1f MB, %s; wrote %s, which runs it", file, size, proof.precision, runner)
    return proof


def _record(run_dir: Path, proof: ExportRecord) -> None:
    """Add the proof to the run directory, and write its report again; do nothing without a run.

    The proof replaces those of earlier exports to the same file. If it failed, one that passed
    stays, like its file. An existing page with the same weights stays linked.
    """
    if not (run_dir / "run.json").is_file():
        return
    paths = {"file": proof.file} | ({"page": proof.page} if proof.page else {})
    proof = replace(proof, **{key: _inside(run_dir, path) for key, path in paths.items()})
    file = run_dir / _RECORD
    others = []
    for export in read_valid_part(file, ExportsRecord).exports:
        if export.file not in (proof.file, f"{proof.file}{_UNVERIFIED}"):
            others.append(export)
        elif not proof.page and export.page and (run_dir / export.page).is_file():
            if export.weights_sha256 == proof.weights_sha256:
                proof.page = export.page
    write_record(file, ExportsRecord([*others, proof]))
    write_report(run_dir)


def _inside(run_dir: Path, path: str) -> str:
    """Return a path relative to the run directory if it is inside, else the absolute path."""
    absolute, root = Path(path).resolve(), run_dir.resolve()
    return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)
