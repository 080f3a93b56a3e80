"""Apply a trained model to any photos, without a dataset or a run directory."""

import contextlib
import functools
import itertools
import logging
import os
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import detectron2.data.transforms as T
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from omegaconf import ListConfig, OmegaConf
from PIL import Image
from torch import nn

from d2ext.checkpoint.weights.initial import load_weights, local_weights
from d2ext.checkpoint.weights.weight_files import read_classes
from d2ext.config.check import check_is_config
from d2ext.config.load import load_config
from d2ext.config.num_classes import check_num_classes, class_fields
from d2ext.config.options import TrainOptions
from d2ext.config.tiles import tile_options
from d2ext.data.formats.json_io import nearest
from d2ext.data.loading.image_io import photo_pixels, read_photo
from d2ext.data.loading.mapper import Mapper
from d2ext.data.segmentation import Segmentation, predicted_segmentation
from d2ext.data.tiles.plan import plan_tiles
from d2ext.engine.builders import build_model
from d2ext.errors import UserError, config_errors, format_exception
from d2ext.evaluation.instances import Detections, take
from d2ext.evaluation.predictions import (
    CORNER,
    NO_DETECTIONS,
    check_joinable,
    detections_of,
    outputs_of,
    results_of,
)
from d2ext.evaluation.tiles.join import JoinedTiles
from d2ext.invocation import option
from d2ext.launch.device import choose_device
from d2ext.preflight.chosen import as_trained
from d2ext.preflight.plan import Plan, weights_to_evaluate
from d2ext.run_dir.metadata import read_run_info
from d2ext.run_dir.names import run_folder, run_name, usual_weights

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class TrainedModel(NamedTuple):
    """A model with its weights.

    Attributes:
        model: Model in evaluation mode.
        cfg: Its config.
        classes: Names of its classes.
        weights: File of its weights.
        folder: Run directory, which may not exist for a recipe.
        config: File name of the config.
    """

    model: nn.Module
    cfg: Any
    classes: list[str]
    weights: Path
    folder: Path
    config: str


class Prediction:
    """Objects detected in an image, in descending order of their scores.

    Args:
        image: uint8 (H, W, 3), RGB.
        detections: Detections in this image only.
        class_names: Names of the model's classes.
        segmentation: Semantic or panoptic segmentation, if the model returns one.
        all_scores: Scores of all detections of the model; None if it returns no instances.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        boxes: float32 (N, 4), x0, y0, x1, y1 in pixels.
        scores: float32 (N,), from 0 to 1.
        classes: int64 (N,), indices into `class_names`.
        class_names: Names of the model's classes.
        keypoints: float32 (N, K, 3), x and y in pixels and score; None without keypoints.
        segmentation: Semantic or panoptic segmentation; None without one.
        all_scores: float32 (M,), scores of all detections of the model, also of those below the
            score threshold, in any order; None if the model returns only a segmentation.

    Examples:
        >>> import d2ext
        >>> prediction = d2ext.Predictor.from_run("runs/trained")("photo.jpg")
        >>> prediction.boxes.shape == (len(prediction.scores), 4)
        True
        >>> names = [prediction.class_names[i] for i in prediction.classes]
        >>> pixels = prediction.masks.sum(axis=(1, 2))
        >>> results = prediction.to_coco(image_id=1)
        >>> detections = prediction.to_supervision()  # pip install 'd2ext[supervision]'
    """

    def __init__(
        self,
        image: np.ndarray,
        detections: Detections,
        class_names: Sequence[str],
        segmentation: Segmentation | None = None,
        all_scores: np.ndarray | None = None,
    ):
        self.image = image
        self.segmentation = segmentation
        self.class_names = tuple(class_names)
        # A stable sort keeps the model's order for equal scores.
        self._detections = take(detections, np.argsort(-detections.scores, kind="stable"))
        boxes = self._detections.boxes
        self.boxes = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]).astype(np.float32)
        self.scores = self._detections.scores.astype(np.float32)
        self.classes = self._detections.label
        points = self._detections.keypoints
        self.keypoints = None if points is None else (points + CORNER).astype(np.float32)
        self.all_scores = all_scores

    @functools.cached_property
    def masks(self) -> np.ndarray | None:
        """Return the masks, bool (N, H, W), or None if the model predicts only boxes."""
        if self._detections.masks is None:
            return None
        if not self._detections.masks:
            return np.zeros((0, *self.image.shape[:2]), dtype=bool)
        return mask_util.decode(list(self._detections.masks)).transpose(2, 0, 1).astype(bool)

    @functools.cached_property
    def objects(self) -> list[dict[str, Any]]:
        """Return COCO results without `image_id`; `category_id` is an index into `class_names`.

        `bbox` is [x, y, width, height] in pixels; with masks, `segmentation` is a compressed RLE;
        with keypoints, `keypoints` is [x, y, score, ...], where x and y are indices of pixels.
        """
        rows = results_of(self._detections, [None], slice(None))
        return [{key: value for key, value in row.items() if key != "image_id"} for row in rows]

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Return COCO results, as in the predictions.json of `d2ext predict`.

        Args:
            image_id: Id of the image.

        Returns:
            Dicts with `image_id`, `category_id` (1 for the first of `class_names`), `bbox` ([x, y,
            width, height] in pixels), `score` and, with masks, `segmentation` (compressed RLE);
            with keypoints, `keypoints`.
        """
        return coco_results(self.objects, image_id)

    def to_supervision(self) -> Any:
        """Return a `supervision.Detections`, with the class names in `data["class_name"]`.

        Raises:
            UserError: The package supervision is not installed.
        """
        try:
            from supervision import Detections as Converted
        except ImportError as e:
            raise UserError(
                f"supervision cannot be imported ({e}): pip install 'd2ext[supervision]'"
            ) from e
        names = np.array(self.class_names, dtype=str)[self.classes]
        return Converted(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.classes,
            data={"class_name": names},
        )

    def __repr__(self) -> str:
        counts = Counter(self.class_names[i] for i in self.classes)
        found = ", ".join(f"{name} {n}" for name, n in counts.most_common())
        return f"Prediction({found or 'nothing'})"


def coco_results(objects: Iterable[dict[str, Any]], image_id: int | str) -> list[dict[str, Any]]:
    """Return `Prediction.objects` as COCO results, as `Prediction.to_coco` describes them."""
    return [
        {"image_id": image_id, **found, "category_id": found["category_id"] + 1}
        for found in objects
    ]


class Predictor:
    """Detect objects in images with a trained model.

    `from_run` and `from_config` load a model from files. An image is an RGB array, uint8 (H, W, 3),
    a PIL image, or the path of a photo, which is read as in training.

    Args:
        model: Detectron2 model; it is set to evaluation mode.
        cfg: Config of the model; `dataloader.val.mapper` defines how images are resized, and
            `data.tiles` whether they are cut into tiles, whose detections are joined.
        classes: Names of the model's classes; by default, those of the data that the config
            declares, else "class 1" and so on.
        score_threshold: Lowest score of the objects to keep.
        keep: Names of the classes to keep; None keeps all.

    Attributes:
        classes: Names of the model's classes.
        metadata: `thing_classes`, and the names and colors of keypoints and regions if the config's
            data is one of Detectron2's datasets.
        tiled: Whether images are cut into tiles, so that a batch consists of tiles of one image.

    Raises:
        UserError: The classes do not fit the config, or a class is unknown.

    Examples:
        >>> import d2ext
        >>> predictor = d2ext.Predictor.from_run("runs/trained", score_threshold=0.3)
        >>> predictor.classes
        ['balloon']
        >>> prediction = predictor("photo.jpg")
        >>> for prediction in predictor.predict(["photo.jpg", "photo.jpg"], batch_size=2):
        ...     print(prediction.boxes, prediction.scores)
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: Any,
        classes: Sequence[str] | None = None,
        score_threshold: float = 0.5,
        keep: Sequence[str] | None = None,
    ):
        if isinstance(model, str | os.PathLike):
            raise UserError(
                "since d2ext 0.2, Predictor takes a model; for files, use"
                " Predictor.from_run(run_dir) or Predictor.from_config(config_file, weights)"
            )
        check_is_config(cfg)
        _check_names("classes", classes)
        _check_names("keep", keep)
        self.classes = _class_names(cfg) if classes is None else list(classes)
        check_num_classes(cfg.model, self.classes)
        self.metadata = _metadata(cfg, self.classes)
        self._kept = _indices(keep, self.classes)
        self._model = model.eval()
        with config_errors("dataloader.val.mapper"):
            mapper = instantiate(cfg.dataloader.val.mapper)
        # Mappers of other classes read the file themselves and may do more than resize.
        plain = type(mapper) in (DatasetMapper, Mapper)
        self._input = functools.partial(_resized if plain else _mapped, mapper)
        self._threshold = score_threshold
        self._tiles = tile_options(cfg)
        self.tiled = self._tiles is not None

    @classmethod
    def from_run(
        cls,
        run_dir: str | os.PathLike,
        weights: str | os.PathLike | None = None,
        overrides: Sequence[str] = (),
        score_threshold: float = 0.5,
        keep: Sequence[str] | None = None,
    ) -> "Predictor":
        """Load the model of a run directory.

        Args:
            run_dir: Run directory.
            weights: `best`, `last` or a file; by default, the best if there is one, else the last.
            overrides: Overrides of the run's config, `key=value`.
            score_threshold: Lowest score of the objects to keep.
            keep: Names of the classes to keep; None keeps all.

        Raises:
            UserError: The config or the weights do not exist, or do not fit each other.
        """
        folder = Path(run_dir)
        return cls.from_config(folder / "config.yaml", weights, overrides, score_threshold, keep)

    @classmethod
    def from_config(
        cls,
        config_file: str | os.PathLike,
        weights: str | os.PathLike | None = None,
        overrides: Sequence[str] = (),
        score_threshold: float = 0.5,
        keep: Sequence[str] | None = None,
    ) -> "Predictor":
        """Build the model of a config and load its weights.

        The class names come from the checkpoint, else from its run, else from the data that the
        config declares (without reading images); otherwise they are "class 1" and so on.

        Args:
            config_file: A run's config.yaml, or a recipe.
            weights: `best` or `last` of the config's output directory, or a file; by default, the
                best if there is one, else the last.
            overrides: Overrides of the config, `key=value`.
            score_threshold: Lowest score of the objects to keep.
            keep: Names of the classes to keep; None keeps all.

        Raises:
            UserError: The config or the weights do not exist, or do not fit each other.
        """
        trained = load_trained(config_file, weights, overrides)
        return cls(trained.model, trained.cfg, trained.classes, score_threshold, keep)

    @classmethod
    def from_onnx(
        cls,
        file: str | os.PathLike,
        score_threshold: float = 0.5,
        keep: Sequence[str] | None = None,
    ) -> "Predictor":
        """Load a model that `d2ext export` wrote, and run it with onnxruntime on the CPU.

        Args:
            file: ONNX file.
            score_threshold: Lowest score of the objects to keep.
            keep: Names of the classes to keep; None keeps all.

        Raises:
            UserError: onnxruntime is not installed (`pip install 'd2ext[export]'`), or the file is
                missing, damaged, or of another version.
        """
        from d2ext.predict.onnx_model import OnnxModel, input_config

        model = OnnxModel(file)
        cfg = input_config(model.info)
        return cls(model, cfg, model.info.classes, score_threshold, keep)

    def __call__(self, image: Any) -> Prediction:
        """Return the prediction for one image.

        Raises:
            UserError: The argument is not an image, or cannot be read.
        """
        return next(self.predict([image]))

    def predict(
        self,
        images: Iterable[Any],
        batch_size: int = 1,
        skip: Callable[[UserError], None] | None = None,
    ) -> Iterator[Prediction]:
        """Yield the prediction for each image.

        Args:
            images: Images, read one batch at a time.
            batch_size: Number of images that the model processes together; with `data.tiles`,
                number of tiles.
            skip: Called with the error of each image that is too narrow to be resized, which then
                has no prediction; None raises the error.

        Raises:
            UserError: An item is not an image or cannot be read, or an argument is not valid.
        """
        if isinstance(images, str | os.PathLike | Image.Image):
            raise UserError("predict takes several images; give a list, or call the predictor")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: give a positive number of images")
        if self._tiles:
            join = functools.partial(self._joined, batch_size=batch_size)
            yield from (found for _, found in _usable(join, images, skip))
            return
        for batch in batches(_usable(self._input, images, skip), batch_size):
            with torch.inference_mode():
                outputs = list(outputs_of(self._model, [sample for _, sample in batch]))
            for (image, _), output in zip(batch, outputs, strict=True):
                segmentation = predicted_segmentation(output, self.metadata)
                detections, scores = NO_DETECTIONS, None
                if "instances" in output:
                    detections, scores = self._detections(output["instances"].to("cpu"))
                elif segmentation is None:
                    raise UserError(
                        f"the model returns {', '.join(output) or 'nothing'}; only models that"
                        " return instances, semantic or panoptic segmentation can predict"
                    )
                yield Prediction(image, detections, self.classes, segmentation, scores)

    def _joined(self, image: np.ndarray, batch_size: int) -> Prediction:
        """Return the prediction for an image that is cut into tiles."""
        assert self._tiles
        height, width = image.shape[:2]
        joined = JoinedTiles(height, width)
        tiles = plan_tiles(height, width, self._tiles.side, self._tiles.shared).tolist()
        for batch in batches(tiles, batch_size):
            inputs = [self._input(image[y0:y1, x0:x1]) for x0, y0, x1, y1 in batch]
            with torch.inference_mode():
                outputs = list(outputs_of(self._model, inputs))
            for tile, output in zip(batch, outputs, strict=True):
                check_joinable(output)
                instances = output["instances"].to("cpu")
                if self._kept is not None:
                    instances = instances[torch.isin(instances.pred_classes, self._kept)]
                joined.add(tile, detections_of(0, instances))
        # Parts of an object may have low scores, so the threshold applies to the joined ones.
        found = joined.joined()
        shown = take(found, np.flatnonzero(found.scores >= self._threshold))
        return Prediction(image, shown, self.classes, None, found.scores.astype(np.float32))

    def _detections(self, instances: Any) -> tuple[Detections, np.ndarray]:
        """Return those of an image's instances whose score and class are asked for.

        Also return the scores of all instances of these classes.
        """
        if self._kept is not None:
            instances = instances[torch.isin(instances.pred_classes, self._kept)]
        kept = instances.scores >= self._threshold
        return detections_of(0, instances[kept]), instances.scores.float().numpy()


def load_trained(
    config_file: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    overrides: Sequence[str] = (),
) -> TrainedModel:
    """Build the model of a config and load its weights; see `Predictor.from_config`."""
    cfg = load_config(config_file, overrides)
    options = TrainOptions.from_config(cfg.train)
    folder = run_folder(config_file) or Path(
        options.output_dir or Path("work_dirs") / run_name(config_file)
    )
    if weights is None:
        weights = usual_weights(folder) or "last"
    source = weights_to_evaluate(str(weights), None, folder, options.init_checkpoint)
    file = local_weights(source, option("--weights"))
    cfg = as_trained(cfg, Path(source).parent)
    order = options.init_checkpoint_classes
    path = Path(file.partition("?")[0])
    classes = _class_names(cfg, path, order)
    check_num_classes(cfg.model, classes)
    device, _ = choose_device(options.device, 1)
    plan = Plan(folder, device, classes, {}, None, file, None, None, [])
    model = build_model(cfg, plan)
    load_weights(model, file, whole=True)
    return TrainedModel(model.eval(), cfg, classes, path, folder, Path(config_file).name)


class _TooNarrowError(UserError):
    """An image cannot be resized, because its short side would become 0."""


def _usable(
    function: Callable[[np.ndarray], Any],
    images: Iterable[Any],
    skip: Callable[[UserError], None] | None,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield the pixels of each image with the result of a function; see `Predictor.predict`."""
    for image in map(_pixels, images):
        try:
            result = function(image)
        except _TooNarrowError as e:
            if skip is None:
                raise
            skip(e)
        else:
            yield image, result


def _resized(mapper: DatasetMapper, image: np.ndarray) -> dict[str, Any]:
    """Return the model's input for an RGB image (H, W, 3), without writing a file."""
    height, width = image.shape[:2]
    pixels = image if mapper.image_format == "RGB" else image[:, :, ::-1]
    seen = T.AugInput(np.ascontiguousarray(pixels))
    try:
        mapper.augmentations(seen)
    except ValueError as e:  # the short side of a very long image becomes 0
        raise _TooNarrowError(
            f"an image of {width} x {height} pixels cannot be resized: {e}"
        ) from e
    planes = torch.from_numpy(np.ascontiguousarray(seen.image.transpose(2, 0, 1)))
    return {"image": planes, "height": height, "width": width}


def _mapped(mapper: Any, image: np.ndarray) -> dict[str, Any]:
    """Return the sample that a mapper makes of a file with an RGB image (H, W, 3).

    Raises:
        UserError: The mapper fails, for example because it needs annotations.
    """
    height, width = image.shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "photo.png"
        Image.fromarray(image).save(file, compress_level=1)
        record = {"file_name": str(file), "height": height, "width": width, "image_id": 0}
        try:
            return mapper(record)
        except Exception as e:
            frame = traceback.extract_tb(e.__traceback__)[-1]
            raise UserError(
                f"dataloader.val.mapper ({type(mapper).__name__}) cannot map an image of {width} x"
                f" {height} pixels without annotations: {format_exception(e)}"
                f" ({frame.filename}:{frame.lineno}); set a mapper that can, such as"
                " dataloader.val.mapper._target_=detectron2.data.DatasetMapper"
            ) from e


def _pixels(image: Any) -> np.ndarray:
    """Return an image as an RGB array, uint8 (H, W, 3).

    Raises:
        UserError: The argument is not an image, or cannot be read.
    """
    try:
        if isinstance(image, str | os.PathLike):
            return np.ascontiguousarray(read_photo(image, "RGB"))
        if isinstance(image, Image.Image):
            path = getattr(image, "filename", "")  # set if Pillow opened a file
            return np.ascontiguousarray(photo_pixels(image, path, "RGB"))
    except OSError as e:
        raise UserError(f"{image} cannot be read: {e.strerror or e}") from e
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return image
        given = f"an array of {image.dtype} {image.shape}"
    else:
        given = f"a {type(image).__name__}"
    raise UserError(
        f"the image is {given}; give an RGB array, uint8 (H, W, 3), a PIL image or a path, and pass"
        " several images to Predictor.predict"
    )


def batches(images: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield images in lists of `size`; the last one may be shorter."""
    images = iter(images)
    while batch := list(itertools.islice(images, size)):
        yield batch


def _class_names(cfg: Any, weights: Path | None = None, order: Sequence[str] = ()) -> list[str]:
    """Return the model's classes from the most reliable source that has them; read no images.

    The sources are the checkpoint, the run that it is in, and the data that the config declares. If
    none of them has the names, the classes are numbered.

    Raises:
        UserError: Even the number of classes is unknown.
    """
    saved = weights and (read_classes(weights, order) or read_run_info(weights.parent).classes)
    if found := saved or _declared(cfg):
        return list(found)
    stated = dict(class_fields(cfg.model, "model"))
    number = next((n for n in stated.values() if n is not None), None)
    if number is None:
        if weights is None:
            raise UserError("the config's data does not define the classes; give classes=[...]")
        raise UserError(
            f"the number of classes is unknown: it is not in {weights}, in a run.json next to that"
            " file, or in the config's data; copy the run.json there, or give"
            f" the override {next(iter(stated), 'num_classes')}=N"
        )
    logger.warning("The class names are unknown; the classes are called class 1 to %d", number)
    return [f"class {i}" for i in range(1, number + 1)]


def _metadata(cfg: Any, classes: Sequence[str]) -> SimpleNamespace:
    """Return the names and colors that pictures need; most are those of Detectron2's datasets."""
    names = OmegaConf.select(cfg, "dataloader.val.dataset.names")
    name = names[0] if isinstance(names, ListConfig) and names else names
    found = MetadataCatalog.get(name).as_dict() if name in DatasetCatalog.list() else {}
    return SimpleNamespace(**{**found, "thing_classes": classes})


def _declared(cfg: Any) -> list[str]:
    """Return the classes of the training data, combined as in a run, else those of val.

    Only annotation files are read. The list is empty if any of the datasets has unknown classes.
    """
    fields = (f"dataloader.{split}.dataset.names" for split in ("train", "val"))
    names: Any = next(filter(None, (OmegaConf.select(cfg, field) for field in fields)), [])
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


def _check_names(argument: str, names: Sequence[str] | None) -> None:
    if isinstance(names, str):  # it is a sequence of letters
        raise UserError(f"{argument}={names!r} is a string; give a list of names")


def _indices(wanted: Sequence[str] | None, classes: Sequence[str]) -> torch.Tensor | None:
    if wanted is None:
        return None
    for name in wanted:
        if name not in classes:
            raise UserError(f"the model has no class {name!r}; {nearest(name, classes)}")
    return torch.tensor([classes.index(name) for name in wanted])
