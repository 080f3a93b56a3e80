"""A trained model for photos of the user's own: no data set, no run directory."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import instantiate

from d2ext.config.load import load_config
from d2ext.data.formats.common import nearest
from d2ext.engine.build import build_model
from d2ext.engine.classes import check_num_classes
from d2ext.engine.preflight import Plan, choose_device, weights_to_evaluate
from d2ext.engine.weights import load_weights, local_weights
from d2ext.errors import UserError, building
from d2ext.evaluation.predictions import detections_of, instances_of, results_of


@dataclass(frozen=True)
class Prediction:
    """What a model sees in an image.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        objects: by falling score, as COCO has results: `category_id` (an index into the
            predictor's classes), `bbox` [x, y, width, height] in pixels, `score`, and with a mask
            `segmentation`, a compressed RLE.
    """

    image: np.ndarray
    objects: list[dict[str, Any]]


class Predictor:
    """Finds objects in images.

        predictor = d2ext.Predictor("work_dirs/mine/config.yaml", "best")
        for prediction in predictor([image]):
            ...

    Args:
        config_file: a run's config.yaml, or a recipe.
        weights: `best` or `last` of the config's output directory, or a file.
        overrides: changes to the config, `key=value`.
        score_threshold: less certain objects are left out.
        classes: names of the classes to keep; None keeps all.

    Attributes:
        classes: the model's, by `category_id`.

    Raises:
        UserError: the config or the weights are absent or do not fit, or a class is unknown.
    """

    def __init__(
        self,
        config_file: str | Path,
        weights: str = "best",
        overrides: Sequence[str] = (),
        score_threshold: float = 0.5,
        classes: Sequence[str] | None = None,
    ):
        cfg = load_config(str(config_file), list(overrides))
        path = Path(config_file)
        folder = Path(cfg.train.get("output_dir") or Path("work_dirs") / path.stem)
        if (path.parent / "run.json").is_file():  # a run's own, which may have been moved
            folder = path.parent
        self.weights = weights_to_evaluate(weights, None, folder, cfg.train.get("init_checkpoint"))
        file = local_weights(self.weights, "--weights")
        self.classes = _class_names(cfg, Path(file))
        check_num_classes(cfg.model, self.classes)
        self._kept = _indices(classes, self.classes)
        device, _ = choose_device(cfg.train.get("device", "cuda"), 1)
        plan = Plan(folder, device, self.classes, {}, None, file, None, None, [])
        self._model = build_model(cfg, plan).eval()
        load_weights(self._model, file)
        with building("dataloader.val.mapper"):
            mapper = instantiate(cfg.dataloader.val.mapper)
            self._resize, self._format = mapper.augmentations, mapper.image_format
        self._threshold = score_threshold

    def __call__(self, images: Iterable[np.ndarray], batch_size: int = 1) -> Iterator[Prediction]:
        """What is in each image.

        Args:
            images: uint8 (H, W, 3), RGB; taken one batch at a time.
            batch_size: images that the model looks at together.
        """
        batch: list[np.ndarray] = []
        for image in images:
            batch.append(image)
            if len(batch) == batch_size:
                yield from self._predict(batch)
                batch = []
        if batch:
            yield from self._predict(batch)

    def _predict(self, images: Sequence[np.ndarray]) -> Iterator[Prediction]:
        inputs = [self._input(image) for image in images]
        with torch.inference_mode():
            found = list(instances_of(self._model, inputs))
        for i, (image, instances) in enumerate(zip(images, found, strict=True)):
            kept = instances.scores >= self._threshold
            if self._kept is not None:
                kept &= torch.isin(instances.pred_classes, self._kept)
            _, columns = detections_of(i, instances[kept])
            objects = list(results_of(columns, range(i + 1), slice(None)))
            for each in objects:
                del each["image_id"]
            yield Prediction(image, sorted(objects, key=lambda o: -o["score"]))

    def _input(self, image: np.ndarray) -> dict[str, Any]:
        height, width = image.shape[:2]
        pixels = image if self._format == "RGB" else image[:, :, ::-1]
        seen = T.AugInput(np.ascontiguousarray(pixels))
        self._resize(seen)
        planes = torch.from_numpy(np.ascontiguousarray(seen.image.transpose(2, 0, 1)))
        return {"image": planes, "height": height, "width": width}


def _class_names(cfg: Any, weights: Path) -> list[str]:
    """Of the run that the weights lie in, else of the config's data, else numbers."""
    run = weights.parent / "run.json"
    with contextlib.suppress(OSError, ValueError):  # absent, or damaged
        content = json.loads(run.read_text())
        if isinstance(content, dict) and content.get("classes"):
            return content["classes"]
    from d2ext.engine.agree import declare_datasets
    from d2ext.engine.splits import check_splits

    declare_datasets(cfg)
    return check_splits({"val": cfg.dataloader.val})[1]


def _indices(wanted: Sequence[str] | None, classes: Sequence[str]) -> torch.Tensor | None:
    if wanted is None:
        return None
    for name in wanted:
        if name not in classes:
            raise UserError(f"the model has no class {name!r}; {nearest(name, classes)}")
    return torch.tensor([classes.index(name) for name in wanted])
