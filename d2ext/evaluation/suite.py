"""A model over test sets: inference once, any number of metrics, flat results."""

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils import comm
from omegaconf import ListConfig
from torch import nn

from d2ext.evaluation.instances import detections, ground_truth
from d2ext.files import write_json

logger = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """What one data set's evaluation leaves.

    Attributes:
        dataset: its name.
        records: Detectron2 dataset dicts.
        predictions: COCO results; `category_id` counts from 0 as in the records.
        results: `<dataset>/<metric>/<task>/<name>` to a number, NaN where undefined.
    """

    dataset: str
    records: Sequence[dict]
    predictions: list[dict]
    results: dict[str, float]


def test_sets(loader_cfg: Any) -> list[str]:
    """The names of the data sets of a test loader's config; a list means separate sets."""
    names = loader_cfg.dataset.names
    return list(names) if isinstance(names, (ListConfig, list, tuple)) else [names]


class Suite:
    """The test sets of a loader's config and the metrics to compute on each.

    Args:
        loader_cfg: for example `dataloader.val`.
        evaluators: metric name to its config.
    """

    def __init__(self, loader_cfg: Any, evaluators: Mapping[str, Any]):
        self._metrics = {name: instantiate(cfg) for name, cfg in evaluators.items()}
        self._sets = []
        for name in test_sets(loader_cfg):
            one_set = copy.deepcopy(loader_cfg)  # keeps its parent, which interpolations need
            one_set.dataset.names = name
            records = DatasetCatalog.get(name)
            self._sets.append((name, instantiate(one_set), records))

    def evaluate(self, model: nn.Module) -> list[Evaluation]:
        """Runs the model over every set and every metric over its predictions.

        Args:
            model: takes Detectron2's inputs; its training mode is put back.

        Returns:
            One Evaluation a set, on the main process; an empty list elsewhere.
        """
        evaluations = []
        for name, loader, records in self._sets:
            start = time.perf_counter()
            predictions = predict(model, loader)
            if not comm.is_main_process():
                continue
            seconds = time.perf_counter() - start
            logger.info(
                "%s: %d images, %d detections, %.1f s",
                name,
                len(records),
                len(predictions),
                seconds,
            )
            classes = MetadataCatalog.get(name).thing_classes
            truth = ground_truth(records, classes)
            found = detections(truth, predictions)
            results = {
                f"{name}/{metric_name}/{key}": value
                for metric_name, metric in self._metrics.items()
                for key, value in metric(truth, found).items()
            }
            evaluations.append(Evaluation(name, records, predictions, results))
        return evaluations


def predict(model: nn.Module, loader: Any) -> list[dict]:
    """COCO results of all ranks, in the order of the images, on the main process."""
    training = model.training
    model.eval()
    results = []
    try:
        with torch.inference_mode():
            for inputs in loader:
                for sample, output in zip(inputs, model(inputs), strict=True):
                    results.extend(to_results(sample["image_id"], output["instances"]))
    finally:
        model.train(training)
    return [r for part in comm.gather(results) for r in part]


def to_results(image_id: int, instances: Any) -> list[dict]:
    """One image's detections (Detectron2 Instances) as COCO results."""
    instances = instances.to("cpu")
    boxes = BoxMode.convert(
        instances.pred_boxes.tensor.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
    ).tolist()
    scores, labels = instances.scores.tolist(), instances.pred_classes.tolist()
    results = [
        {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]
    if instances.has("pred_masks"):
        for result, mask in zip(results, instances.pred_masks.numpy(), strict=True):
            rle = pycocotools.mask.encode(np.asfortranarray(mask))
            result["segmentation"] = {**rle, "counts": rle["counts"].decode("ascii")}
    return results


def write_predictions(evaluation: Evaluation, folder: Path) -> None:
    """Writes `<folder>/<dataset>.json`, COCO results with the category ids of the data set.

    A data set that was loaded without ids of its own counts its classes from 1, as its conversion
    to COCO does.
    """
    metadata = MetadataCatalog.get(evaluation.dataset)
    if contiguous := metadata.get("thing_dataset_id_to_contiguous_id"):
        ids = {index: category_id for category_id, index in contiguous.items()}
    else:
        ids = range(1, len(metadata.thing_classes) + 1)
    write_json(
        folder / f"{evaluation.dataset}.json",
        [{**p, "category_id": ids[p["category_id"]]} for p in evaluation.predictions],
    )
