"""Evaluate and draw like two tools of Detectron2, as the alternative in a benchmark.

    python benchmarks/stock_eval.py FOLDER WEIGHTS SCORE CONFIG [overrides]

Evaluation is that of `main --eval-only` in tools/lazyconfig_train_net.py, with the model, loader
and validation photos of one of our recipes. Then each photo is drawn as in
tools/visualize_json_results.py, predictions from SCORE beside the ground truth, but reduced to a
long side of 1024 pixels as in our overlays.
"""

import json
import sys
from argparse import Namespace
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import default_setup
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import COCOEvaluator, inference_on_dataset, print_csv_format
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer

from d2ext.config.load import load_config
from d2ext.data.datasets.register import register_datasets

SIDE = 1024


def evaluate(cfg: object, folder: str, weights: str) -> str:
    """Evaluate on the validation photos; write coco_instances_results.json; return the dataset."""
    model = instantiate(cfg.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model = create_ddp_model(model)
    DetectionCheckpointer(model).load(weights)
    data, mapper = cfg.dataloader.val, cfg.dataloader.val.mapper
    mapper["_target_"] = DatasetMapper
    name = data.dataset.names
    loader = build_detection_test_loader(
        get_detection_dataset_dicts(name, filter_empty=False),
        mapper=instantiate(mapper),
        num_workers=data.num_workers,
    )
    evaluator = COCOEvaluator(name, ("bbox", "segm"), distributed=False, output_dir=folder)
    print_csv_format(inference_on_dataset(model, loader, evaluator))
    return name


def draw(name: str, folder: Path, score: float) -> None:
    """Draw the predictions of each photo beside its ground truth."""
    (folder / "drawn").mkdir()
    metadata = MetadataCatalog.get(name)
    by_image = defaultdict(list)
    for found in json.loads((folder / "coco_instances_results.json").read_text()):
        by_image[found["image_id"]].append(found)
    for record in DatasetCatalog.get(name):
        image = cv2.imread(record["file_name"])[:, :, ::-1]
        scale = min(SIDE / max(image.shape), 1)
        found = _instances(by_image[record["image_id"]], image.shape[:2], score)
        predicted = Visualizer(image, metadata, scale).draw_instance_predictions(found).get_image()
        labeled = Visualizer(image, metadata, scale).draw_dataset_dict(record).get_image()
        both = np.concatenate((predicted, labeled), axis=1)
        cv2.imwrite(str(folder / "drawn" / Path(record["file_name"]).name), both[:, :, ::-1])


def _instances(found: list[dict], size: tuple[int, int], score: float) -> Instances:
    chosen = [x for x in found if x["score"] >= score]
    instances = Instances(size)
    boxes = np.asarray([x["bbox"] for x in chosen]).reshape(-1, 4)
    instances.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
    instances.scores = np.asarray([x["score"] for x in chosen])
    # The recipe's dataset counts classes from 0, the file from the dataset's first id.
    instances.pred_classes = np.zeros(len(chosen), int)
    instances.pred_masks = [x["segmentation"] for x in chosen]
    return instances


def main() -> None:
    """Evaluate, then draw."""
    folder, weights, score, config, *overrides = sys.argv[1:]
    cfg = load_config(config, overrides)
    cfg.train.output_dir = folder
    default_setup(cfg, Namespace(config_file=config, opts=overrides, eval_only=True))
    register_datasets(cfg.datasets)
    draw(evaluate(cfg, folder, weights), Path(folder), float(score))


if __name__ == "__main__":
    main()
