"""Collect a model's predictions from all ranks, and write its detections to a file.

Masks and label maps are encoded immediately, so that memory does not grow with the size of the
images.
"""

import contextlib
import io
import itertools
import logging
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import pycocotools.mask
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNN, detector_postprocess
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from torch import nn

from d2ext.data.datasets.classes import ABSENT
from d2ext.data.segmentation import Segmentation, predicted_segmentation
from d2ext.errors import UserError, errors_located
from d2ext.evaluation.instances import Detections, finite, take
from d2ext.evaluation.roi_masks import encoded_masks
from d2ext.evaluation.tiles.join import OpenPhotos
from d2ext.files import atomic_write
from d2ext.invocation import option
from d2ext.text import plural
from d2ext.waiting import interruptible, waiting_for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model on a dataset.

    Attributes:
        detections: Its detections; None if it returns no instances.
        segmentations: Semantic or panoptic segmentation by index of the image.
    """

    detections: Detections | None
    segmentations: Mapping[int, Segmentation]


class _Batch(NamedTuple):
    """Inputs and outputs of a model by image, and what is kept of the outputs on the CPU.

    Without evaluators, the inputs have no images, and the outputs are empty.
    """

    inputs: list[dict]
    outputs: list[dict]
    instances: list[Any]
    segmentations: list[Segmentation | None]


class _Found(NamedTuple):
    """Index and predictions of an image."""

    image: int
    detections: Detections | None
    segmentation: Segmentation | None


_CHUNK = 256  # images whose detections a rank sends at a time
# Detectron2's keypoints are shifted by half a pixel: COCO's x and y are indices of pixels.
CORNER = np.array([0.5, 0.5, 0])
_WRITTEN = 10_000  # detections that are converted to JSON at a time
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def predict(
    model: nn.Module,
    loader: Any,
    image_ids: Sequence[Any],
    before_batch: Callable[[], None] = lambda: None,
    evaluators: Mapping[str, DatasetEvaluator] = MappingProxyType({}),
    needs_instances: bool = True,
    metadata: Any = None,
) -> Predictions | None:
    """Run a model on the batches of all ranks; return the predictions on rank 0, else None.

    The detections of a photo's tiles are joined. If several ranks processed an image, the first
    predictions are used; an image that no rank processed, because it cannot be read, has none.

    Args:
        model: Model that takes Detectron2's inputs; its training mode is restored.
        loader: Loader of this rank's batches.
        image_ids: Image ids of the dataset, in order; file names for images without an id.
        before_batch: Called before each batch.
        evaluators: Evaluators of Detectron2 by name; they are reset, and process the outputs.
        needs_instances: Whether the model must return instances.
        metadata: Metadata of the dataset, for models that return panoptic labels only.

    Returns:
        The predictions; None on other ranks.

    Raises:
        UserError: The model does not return instances (a proposal network, for example), or returns
            more than instances for a tile, or the loader omits tiles of a photo.
    """
    place = {image_id: i for i, image_id in enumerate(image_ids)}
    training = model.training
    model.eval()
    # Keep detections in one block of memory. As small objects, they would be allocated between
    # the masks of the images, and glibc could neither reuse nor release the memory of the masks.
    kept, count = io.BytesIO(), 0
    open_photos = OpenPhotos()
    for evaluator in evaluators.values():
        evaluator.reset()
    # Evaluators may keep tensors and change them later, which inference mode forbids.
    mode = torch.no_grad if evaluators else torch.inference_mode

    def encode(batch: _Batch) -> list[_Found]:
        # A setting of each thread, like autocast, which encoding does not need.
        with mode():
            parts = zip(batch.inputs, batch.instances, batch.segmentations, strict=True)
            return [_found(place, *part) for part in parts]

    outputs = _outputs(model, loader, before_batch, bool(evaluators), needs_instances, metadata)
    # On a CPU, a thread would take the model's time, and keep a batch more in memory.
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    encoded_batches = (
        ((batch, encode(batch)) for batch in outputs) if on_cpu else one_behind(outputs, encode)
    )
    try:
        # An error's traceback keeps generators alive, and with them the loader's workers.
        with mode(), contextlib.closing(outputs), contextlib.closing(encoded_batches) as batches:
            for batch, encoded in batches:
                photos: list[tuple[dict, dict]] = []  # with tiles, those that are complete
                for sample, output, found in zip(batch.inputs, batch.outputs, encoded, strict=True):
                    photo = sample, output
                    if "tile" in sample:
                        assert found.detections is not None
                        whole = open_photos.add(sample, found.detections, found.image)
                        if whole is None:
                            continue  # a later tile completes the photo
                        if evaluators:
                            photo = _photo(sample), _output(sample, whole)
                        found = _Found(found.image, whole, found.segmentation)
                    photos.append(photo)
                    pickle.dump(found, kept)
                    count += 1
                for name, evaluator in evaluators.items() if photos else ():
                    with errors_located(f"evaluators.{name}"):
                        evaluator.process([p[0] for p in photos], [p[1] for p in photos])
                del batch, photos, photo, sample, output  # free a GPU's memory for the next one
    finally:
        model.train(training)
    messages = getattr(loader, "left_out", [])  # custom loaders lack it
    if incomplete := open_photos.incomplete:
        photos_of = f"{plural(len(incomplete), 'photo')}, such as {incomplete[0]}"
        if not messages:
            raise UserError(
                f"data.tiles: tiles are missing of {photos_of}; give each rank all tiles of its"
                " photos, as d2ext's evaluation_set and build_test_loader do"
            )
        messages = [*messages, f"tiles are missing of {photos_of}: not evaluated"]
    with waiting_for("the predictions of the other ranks", needed=comm.is_main_process):
        left_out = comm.gather(messages)
    for message in itertools.chain.from_iterable(left_out):
        logger.warning("%s", message)
    kept.seek(0)
    return _gathered((pickle.load(kept) for _ in range(count)), count, len(image_ids))


def _outputs(
    model: nn.Module,
    loader: Any,
    before_batch: Callable[[], None],
    as_called: bool,
    needs_instances: bool,
    metadata: Any,
) -> Generator[_Batch, None, None]:
    """Yield the batches of a loader with the outputs of a model."""
    with contextlib.closing(interruptibly(loader)) as batches:
        for inputs in filter(None, batches):  # empty without readable images
            before_batch()
            yield _run(model, inputs, as_called, needs_instances, metadata)


def _run(
    model: nn.Module, inputs: list[dict], as_called: bool, needs_instances: bool, metadata: Any
) -> _Batch:
    outputs = model(inputs) if as_called else list(outputs_of(model, inputs))
    for sample, output in zip(inputs, outputs, strict=True):
        if needs_instances and "instances" not in output:
            raise UserError(
                f"the model returns {', '.join(output)}, but no instances, which metrics need"
                " (CocoMetric's task proposals evaluates their boxes regardless of the class);"
                " use evaluators of Detectron2 such as SemSegEvaluator, or turn evaluation off"
                f" ({option('--no-validate')})"
            )
        if "tile" in sample:
            check_joinable(output)
    # The copies from a GPU must precede the next batch's work there.
    found = [o["instances"].to("cpu") if "instances" in o else None for o in outputs]
    maps = [predicted_segmentation(output, metadata) for output in outputs]
    if not as_called:
        inputs = [{k: v for k, v in sample.items() if k != "image"} for sample in inputs]
        outputs = [{} for _ in outputs]
    return _Batch(inputs, outputs, found, maps)


def _found(
    place: Mapping[Any, int],
    sample: Mapping[str, Any],
    instances: Any,
    segmentation: Segmentation | None,
) -> _Found:
    """Return the predictions for an image, encoded."""
    i = place[sample["image_id" if "image_id" in sample else "file_name"]]
    detections = None if instances is None else detections_of(i, instances)
    return _Found(i, detections, segmentation)


def one_behind(
    items: Iterable[_Item], work: Callable[[_Item], _Result]
) -> Generator[tuple[_Item, _Result], None, None]:
    """Yield items with the results of `work`, which a thread does while the next item is made.

    Order and results are those of a loop in one thread. An error of `work` is raised here, after
    the next item has been made.

    Args:
        items: Items, such as the outputs of a model for each batch.
        work: Function of an item; it should release Python's lock most of the time.
    """
    with ThreadPoolExecutor(1) as thread:
        before = None
        for item in items:
            running = item, thread.submit(work, item)
            if before:
                yield before[0], before[1].result()
            before = running
        if before:
            yield before[0], before[1].result()


def interruptibly(batches: Iterable[list[dict]]) -> Generator[list[dict], None, None]:
    """Yield batches, and end the workers; a request to stop may interrupt the wait for a batch."""
    iterator = iter(batches)
    try:
        while True:
            with interruptible():
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch
    finally:
        if hasattr(iterator, "close"):  # for a generator, as of d2ext's loader: stops its workers
            iterator.close()


def outputs_of(model: nn.Module, inputs: list[dict]) -> Iterator[dict[str, Any]]:
    """Yield a model's outputs, in pixels of the original images.

    With Detectron2's R-CNN, masks stay relative to their boxes (`roi_masks`); calling the model
    would paste them into images (`pred_masks`).
    """
    if type(model) is not GeneralizedRCNN:
        yield from model(inputs)
        return
    inference: Any = model.inference
    for sample, instances in zip(inputs, inference(inputs, do_postprocess=False), strict=True):
        instances = instances.to("cpu")
        if instances.has("pred_masks"):
            instances.roi_masks = instances.pred_masks
            instances.remove("pred_masks")
        size = (
            sample.get(side, instances.image_size[i]) for i, side in enumerate(("height", "width"))
        )
        yield {"instances": detector_postprocess(instances, *size)}


def detections_of(place: int, instances: Any) -> Detections:
    """Convert instances on the CPU to detections in the image with the index `place`."""
    boxes = instances.pred_boxes.tensor
    masks = None
    if instances.has("roi_masks"):
        masks = encoded_masks(instances.roi_masks, boxes, *instances.image_size)
    elif instances.has("pred_masks"):
        masks = [_encoded(mask) for mask in instances.pred_masks.numpy()]
    keypoints = None
    if instances.has("pred_keypoints"):
        keypoints = instances.pred_keypoints.double().numpy() - CORNER
    return Detections(
        np.full(len(boxes), place),
        instances.pred_classes.numpy().astype(np.int64),
        BoxMode.convert(boxes.double(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).numpy(),
        instances.scores.double().numpy(),
        masks,
        keypoints=keypoints,
    )


def check_joinable(output: Mapping[str, Any]) -> None:
    """Raise a UserError if the output of a model for a tile has more or less than instances."""
    others = [key for key in output if key not in ("instances", "proposals")]
    if "instances" not in output or others:
        raise UserError(
            f"data.tiles joins only objects, but the model returns {', '.join(output)}; set"
            " data.tiles=null"
        )


def _photo(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input for an evaluator of the photo of a tile, without pixels."""
    left_out = ("image", "tile", "photo_size", "photo_tiles")
    height, width = sample["photo_size"]
    made = {key: value for key, value in sample.items() if key not in left_out}
    return {**made, "height": height, "width": width}


def _output(sample: Mapping[str, Any], detections: Detections) -> dict[str, Any]:
    """Return the joined detections of a photo as a model's output, for evaluators of Detectron2."""
    instances = Instances(tuple(sample["photo_size"]))
    boxes = torch.from_numpy(detections.boxes).float()
    instances.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
    instances.scores = torch.from_numpy(detections.scores).float()
    instances.pred_classes = torch.from_numpy(detections.label)
    if detections.masks is not None:
        masks = [pycocotools.mask.decode(mask) for mask in detections.masks]
        size = (len(masks), *sample["photo_size"])
        instances.pred_masks = torch.from_numpy(np.array(masks, bool).reshape(size))
    if detections.keypoints is not None:
        instances.pred_keypoints = torch.from_numpy(detections.keypoints + CORNER).float()
    return {"instances": instances}


def _encoded(mask: np.ndarray) -> dict:
    rle = pycocotools.mask.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def _gathered(mine: Iterator[_Found], length: int, count: int) -> Predictions | None:
    """Gather all ranks' predictions in chunks, so that no message holds all those of a rank.

    Args:
        mine: Predictions of each of this rank's images.
        length: Number of these images.
        count: Number of images in the dataset.
    """
    rounds = max(comm.all_gather(-(-length // _CHUNK)))
    seen, parts, lacking = np.zeros(count, bool), [], False
    segmentations: dict[int, Segmentation] = {}
    for _ in range(rounds):
        chunk = list(itertools.islice(mine, _CHUNK))
        found = [f.detections for f in chunk if f.detections is not None]
        maps = {f.image: f.segmentation for f in chunk if f.segmentation}
        packed = [f.image for f in chunk], len(found) < len(chunk), joined(found), maps
        for places, lacks, detections, maps in comm.gather(packed):
            segmentations = maps | segmentations  # the first ones count
            lacking |= lacks
            new = [place for place in places if not seen[place]]
            if len(new) < len(places):
                detections = take(detections, np.flatnonzero(np.isin(detections.image, new)))
            seen[new] = True
            parts.append(detections)
    if not comm.is_main_process():
        return None
    if not seen.all():
        logger.warning(
            "%d of %d images were not evaluated; their objects count as missed",
            np.sum(~seen),
            count,
        )
    if lacking:
        return Predictions(None, segmentations)
    detections = joined(parts)
    detections = finite(take(detections, np.argsort(detections.image, kind="stable")))
    return Predictions(detections, segmentations)


def joined(parts: Sequence[Detections]) -> Detections:
    """Concatenate detections, with masks and keypoints if the first ones have them."""
    parts = [part for part in parts if len(part.scores)] or list(parts[:1]) or [NO_DETECTIONS]
    masks = None
    if parts[0].masks is not None:
        masks = [mask for part in parts for mask in part.masks or ()]
    image, label, boxes, scores = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("image", "label", "boxes", "scores")
    )
    keypoints = None
    if parts[0].keypoints is not None:
        keypoints = np.concatenate([part.keypoints for part in parts if part.keypoints is not None])
    return Detections(image, label, boxes, scores, masks, keypoints=keypoints)


NO_DETECTIONS = Detections(
    np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), None
)


def results_of(
    detections: Detections, image_ids: Sequence[Any], rows: slice | np.ndarray
) -> Iterator[dict]:
    """Yield detections as COCO results, with their label as `category_id`.

    Args:
        detections: Detections of the dataset.
        image_ids: Image ids of the dataset, in order.
        rows: Rows of the detections to yield.
    """
    masks, keypoints = detections.masks, detections.keypoints
    columns = (getattr(detections, n)[rows].tolist() for n in ("image", "label", "boxes", "scores"))
    chosen = np.arange(len(detections.scores))[rows].tolist()
    for row, image, label, box, score in zip(chosen, *columns, strict=True):
        result = {"image_id": image_ids[image], "category_id": label, "bbox": box, "score": score}
        if masks:
            result["segmentation"] = masks[row]
        if keypoints is not None:
            result["keypoints"] = keypoints[row].reshape(-1).tolist()
        yield result


def write_predictions(
    dataset: str, detections: Detections, image_ids: Sequence[Any], folder: Path
) -> Path:
    """Write `<folder>/<dataset>.json`, COCO results with the category ids of the dataset.

    The classes of a dataset without ids are numbered from 1, as in its conversion to COCO.
    Detections of classes that the dataset does not have are left out, because they have no id in
    its file; their number is logged.

    Args:
        dataset: Name of the dataset in Detectron2's catalogs.
        detections: Detections of the dataset.
        image_ids: Image ids of the dataset, in order.
        folder: Folder to write to.

    Returns:
        Path of the file.

    Raises:
        UserError: The file cannot be written.
    """
    ids = _category_ids(dataset)
    absent = np.isin(detections.label, MetadataCatalog.get(dataset).get(ABSENT, ()))
    if absent.any():
        logger.info(
            "%s.json: left out %d detections of classes that the dataset lacks",
            dataset,
            absent.sum(),
        )
        detections = take(detections, np.flatnonzero(~absent))
    file = folder / f"{dataset}.json"
    with atomic_write(file, "wb") as f:
        f.write(b"[")
        for start in range(0, len(detections.scores), _WRITTEN):
            results = results_of(detections, image_ids, slice(start, start + _WRITTEN))
            rows = [{**r, "category_id": ids[r["category_id"]]} for r in results]
            separator = b",\n" if start else b"\n"
            f.write(separator + msgspec.json.encode(rows)[1:-1])
        f.write(b"]\n")
    return file


def _category_ids(dataset: str) -> Mapping[int, int]:
    """Return the dataset's category id for each class index."""
    metadata = MetadataCatalog.get(dataset)
    if contiguous := metadata.get("thing_dataset_id_to_contiguous_id"):
        return {index: category_id for category_id, index in contiguous.items()}
    return dict(enumerate(range(1, len(metadata.thing_classes) + 1)))
