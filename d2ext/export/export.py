"""Export a trained model: write the file, prove that it equals the model in torch, record that."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from d2ext.export import verify
from d2ext.export.detector import build_detector
from d2ext.export.layers import prepared
from d2ext.export.metadata import describe
from d2ext.export.onnx_file import check_packages, write_onnx
from d2ext.predict.onnx_model import OnnxModel
from d2ext.predict.predictor import TrainedModel, load_trained
from d2ext.report import write_report
from d2ext.run_dir.schema import ExportRecord, ExportsRecord, read_valid_part, write_record

logger = logging.getLogger(__name__)

RUNNER = "run_onnx.py"
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

    Beside the file are `run_onnx.py`, which runs it without torch, and its proof as JSON. The
    proof is also in the run directory, for the report.

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
    trained = load_trained(config_file, weights, [*overrides, *_STOCK, "+dataloader.test=null"])
    detector = build_detector(prepared(trained.model)).eval()
    info = describe(trained, detector)
    info.precision = "float16" if half else "float32"
    name = "model_float16.onnx" if half else "model.onnx"
    file = output or trained.folder / "export" / name
    unverified = file.with_name(f"{file.name}.unverified")
    logger.info("Exporting %s of %s to %s", info.architecture, trained.weights, file)
    write_onnx(detector, info, unverified)
    proof = prove(trained, unverified, file, images)
    if page and not proof.failures:
        from d2ext.export.page import write_page

        write_page(file, page)
        proof.page = str(page)
        logger.info("%s: %.1f MB", page, page.stat().st_size / 1e6)
    _record(trained.folder, proof)
    return not proof.failures


def prove(
    trained: TrainedModel, unverified: Path, file: Path, images: Sequence[Path] = ()
) -> ExportRecord:
    """Compare a written file with the model in torch; if it passes, rename it to `file`.

    Beside it are then its runner, and the proof as JSON.

    Args:
        trained: Model in torch.
        unverified: File to verify.
        file: Its name if it passes.
        images: Photos, and folders of photos; if it is empty, the validation set.

    Returns:
        The proof, with the path that the file has now.
    """
    exported = OnnxModel(unverified)
    precision = exported.info.precision
    proof = verify.verify(trained, exported, unverified, precision, images)
    for line in verify.lines(proof):
        logger.info("%s", line)
    for failure in proof.failures:
        logger.error("%s", failure)
    if proof.failures:
        logger.error("the export failed its verification; the file is kept as %s", unverified)
    else:
        unverified.replace(file)
        runner = file.with_name(RUNNER)
        shutil.copyfile(Path(__file__).with_name(RUNNER), runner)
        size = proof.bytes / 1e6
        logger.info("%s: %.1f MB, %s; run it with %s", file, size, precision, runner)
    proof.file = str(unverified if proof.failures else file)
    json = (
        unverified.with_suffix(".unverified.json") if proof.failures else file.with_suffix(".json")
    )
    write_record(json, replace(proof, file=Path(proof.file).name))
    return proof


def _record(run_dir: Path, proof: ExportRecord) -> None:
    """Add the proof to the run directory, and write its report again; do nothing without a run."""
    if not (run_dir / "run.json").is_file():
        return
    paths = {"file": proof.file} | ({"page": proof.page} if proof.page else {})
    proof = replace(proof, **{key: _inside(run_dir, path) for key, path in paths.items()})
    file = run_dir / _RECORD
    known = read_valid_part(file, ExportsRecord).exports
    others = [export for export in known if export.file != proof.file]
    write_record(file, ExportsRecord([*others, proof]))
    write_report(run_dir)


def _inside(run_dir: Path, path: str) -> str:
    """Return a path relative to the run directory if it is inside, else the absolute path."""
    absolute, root = Path(path).resolve(), run_dir.resolve()
    return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)
