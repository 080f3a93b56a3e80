"""Measure predictions with an exported model against Detectron2's: images per second.

    python benchmarks/predict_onnx.py [--options KEY=VALUE ...]

lite0, trained for a few iterations. Both sides run in turn in one process, from photos to objects
with masks of the photo's size: `Predictor.from_onnx`, with onnxruntime; and the steps of
Detectron2's `DefaultPredictor` with its own layers. With `--threads 1`, both use one thread.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from common import ORIGINALS, paired, record
from detectron2.config import instantiate
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import ResizeShortestEdge
from inference import LITE0, train

from d2ext import Predictor
from d2ext.config.load import load_config
from d2ext.config.num_classes import with_num_classes
from d2ext.data.formats.images import images_in
from d2ext.export.export import export_model

ROUNDS = 5


def _theirs(cfg: object, weights: Path) -> torch.nn.Module:
    """Return Detectron2's model with its own layers."""
    model = instantiate(with_num_classes(cfg.model, 1)).eval()
    model.load_state_dict(torch.load(weights, weights_only=True)["model"])
    return model


def _detect(model: torch.nn.Module, file: Path) -> object:
    """Detect the objects in a photo, as Detectron2's DefaultPredictor does."""
    image = read_image(str(file), "RGB")
    height, width = image.shape[:2]
    resize = ResizeShortestEdge(640, 1280).get_transform(image)
    planes = torch.as_tensor(resize.apply_image(image).astype("float32").transpose(2, 0, 1))
    with torch.no_grad():
        return model([{"image": planes, "height": height, "width": width}])[0]


def main() -> None:
    """Record the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--options", nargs="*", default=[])
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    options = [f"data.root={ORIGINALS}", *args.options]
    with tempfile.TemporaryDirectory() as folder:
        train(LITE0, folder, options)
        run = Path(folder) / "config.yaml"
        cfg = load_config(run)
        root = Path(cfg.data.root) / "balloon" / "val"
        photos = [root / name for name in images_in(root)]
        assert export_model(run, output=Path(folder) / "model.onnx", images=photos[:2])
        predictor = Predictor.from_onnx(Path(folder) / "model.onnx", score_threshold=0.05)
        model = _theirs(cfg, Path(folder) / "model_final.pth")

        def ours() -> float:
            start = time.perf_counter()
            found = [prediction.objects for prediction in predictor.predict(photos)]
            return len(found) / (time.perf_counter() - start)

        def theirs() -> float:
            start = time.perf_counter()
            found = [_detect(model, photo) for photo in photos]
            return len(found) / (time.perf_counter() - start)

        record("predict_onnx", paired(ours, theirs, ROUNDS), "images/s")


if __name__ == "__main__":
    main()
