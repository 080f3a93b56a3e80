"""A trained model for photos of the user's own: no dataset, no run directory."""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import ListConfig, OmegaConf

from d2ext.checkpoint.weights.initial import load_weights, local_weights
from d2ext.config.load import load_config
from d2ext.config.options import TrainOptions
from d2ext.data.formats.json_io import nearest
from d2ext.engine.builders import build_model
from d2ext.errors import UserError, config_errors
from d2ext.evaluation.predictions import detections_of, instances_of, results_of
from d2ext.launch.device import choose_device
from d2ext.preflight.num_classes import check_num_classes, class_fields
from d2ext.preflight.plan import Plan, weights_to_evaluate
from d2ext.run_dir.metadata import read_run_info

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """The objects that a model finds in an image.

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
        classes: names by `category_id`: those that the checkpoint holds, else its run's, else those
            of the data that the config declares (no image is looked at), else "class 1" and so on.

    Raises:
        UserError: the config or the weights are absent or do not fit, or a class is unknown.
    """

    def __init__(
        self,
        config_file: str | Path,
        weights: str | Path = "best",
        overrides: Sequence[str] = (),
        score_threshold: float = 0.5,
        classes: Sequence[str] | None = None,
    ):
        cfg = load_config(str(config_file), list(overrides))
        path = Path(config_file)
        options = TrainOptions.from_config(cfg.train)
        folder = Path(options.output_dir or Path("work_dirs") / path.stem)
        if (path.parent / "run.json").is_file():  # a run's own, which may have been moved
            folder = path.parent
        init = options.init_checkpoint
        self.weights = weights_to_evaluate(str(weights), None, folder, init)
        file = local_weights(self.weights, "--weights")
        self.classes = _class_names(cfg, Path(file.partition("?")[0]))
        check_num_classes(cfg.model, self.classes)
        self._kept = _indices(classes, self.classes)
        device, _ = choose_device(options.device, 1)
        plan = Plan(folder, device, self.classes, {}, None, file, None, None, [])
        self._model = build_model(cfg, plan).eval()
        load_weights(self._model, file, whole=True)
        with config_errors("dataloader.val.mapper"):
            mapper = instantiate(cfg.dataloader.val.mapper)
            self._resize, self._format = mapper.augmentations, mapper.image_format
        self._threshold = score_threshold

    def __call__(self, images: Iterable[np.ndarray], batch_size: int = 1) -> Iterator[Prediction]:
        """Predict what is in each image.

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
    """Return the model's classes, from the surest source that knows them; no image is looked at.

    Those are the checkpoint itself, the run that it lies in, and the data that the config declares;
    where none does, the classes are numbered.

    Raises:
        UserError: not even their number is known.
    """
    if found := _saved_in(weights) or read_run_info(weights.parent).classes or _declared(cfg):
        return found
    stated = dict(class_fields(cfg.model, "model"))
    number = next((n for n in stated.values() if n is not None), None)
    if number is None:
        raise UserError(
            f"the number of classes is unknown: {weights} does not hold it, no run.json lies beside"
            " it, and the config's data does not tell it; put its run.json there, or give"
            f" --options {next(iter(stated), 'num_classes')}=N"
        )
    logger.warning("The names of the classes are unknown; they are called class 1 to %d", number)
    return [f"class {i}" for i in range(1, number + 1)]


def _saved_in(weights: Path) -> list[str]:
    """Return the key `classes` of a checkpoint, whose tensors are not read for it."""
    try:
        content = torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
        return list(content["classes"])
    # A .pkl, an older or another's checkpoint, or a damaged one: `load_weights` will say so.
    except Exception:
        return []


def _declared(cfg: Any) -> list[str]:
    """Return the training data's classes as `register_run_datasets` joins them, else those of val.

    At most annotation files are read; nothing where one of several sets does not tell.
    """
    fields = (f"dataloader.{split}.dataset.names" for split in ("train", "val"))
    names = next(filter(None, (OmegaConf.select(cfg, field) for field in fields)), [])
    union: dict[str, None] = {}
    for name in [names] if isinstance(names, str) else names:
        mine: Sequence[str] = ()
        if declaration := cfg.datasets.get(name):
            given = declaration.get("classes")
            if isinstance(given, ListConfig):
                mine = given
            else:
                with contextlib.suppress(UserError), config_errors(f"datasets.{name}"):
                    mine = instantiate(declaration).classes
        elif name in DatasetCatalog.list():
            mine = MetadataCatalog.get(name).get("thing_classes", ())
        if not mine:
            return []
        union.update(dict.fromkeys(mine))
    return list(union)


def _indices(wanted: Sequence[str] | None, classes: Sequence[str]) -> torch.Tensor | None:
    if wanted is None:
        return None
    for name in wanted:
        if name not in classes:
            raise UserError(f"the model has no class {name!r}; {nearest(name, classes)}")
    return torch.tensor([classes.index(name) for name in wanted])
