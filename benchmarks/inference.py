"""Measure an evaluation against Detectron2's: images per second, from files to the table.

    python benchmarks/inference.py [--only inference_lite0] [--options KEY=VALUE ...]

Both sides run in turn, on the original balloon validation photos and with the same weights (lite0's
after a few iterations; R50's are random, so that it returns as many detections as allowed): our
loader, fast layers and run lengths counted around the boxes; Detectron2's loader, mapper, model,
`inference_on_dataset` and COCOEvaluator. Each has its own process, because d2ext changes how the C
library keeps memory.
"""

import argparse
import contextlib
import io
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from common import ORIGINALS, ROOT, paired, record
from detectron2.config import instantiate
from detectron2.data import (
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from weights import save_calibrated

from d2ext.checkpoint.weights.initial import load_weights
from d2ext.config.load import load_config
from d2ext.data.datasets.register import register_datasets
from d2ext.engine.builders import build_model, build_suite
from d2ext.preflight.plan import Plan, plan_run

LITE0 = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
R50 = "configs/balloon/mask_rcnn_r50_caffe_fpn_ms_poly_1x_balloon.py"
FIGURES = {"inference_lite0": LITE0, "inference_r50": R50}
ROUNDS = 5


def train(config: str, folder: str, options: list[str]) -> None:
    command = [sys.executable, "tools/train_net.py", "--no-validate", "--work-dir", folder]
    command += ["--config-file", config, "--overwrite"]
    command += ["--options", "train.max_iter=60", *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def _measure(name: str, config: str, options: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "model_final.pth")
        if config == R50:
            save_calibrated(load_config(str(ROOT / config), options), Path(weights))
        else:
            train(config, folder, options)
        with sides(config, [*options, f"train.output_dir={folder}"], weights) as both:
            record(name, paired(*both, ROUNDS), "images/s")


@contextlib.contextmanager
def sides(config: str, options: list[str], weights: str) -> Iterator[list[Callable[[], float]]]:
    """Provide functions that evaluate and return images per second: d2ext's and Detectron2's.

    Args:
        config: Recipe.
        options: Overrides of the recipe, with `train.output_dir`.
        weights: File of the weights.
    """
    both = [_Side(build, config, options, weights) for build in (_ours, _theirs)]
    try:
        yield [*both]
    finally:
        for side in both:
            side.end()


class _Side:
    """A process that measures one side, each time that this object is called.

    Args:
        build: `_ours` or `_theirs`.
        config: Recipe.
        options: Overrides of the recipe.
        weights: File of the weights.
    """

    def __init__(self, build: Callable, config: str, options: list[str], weights: str):
        self._connection, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(theirs, build, config, options, weights)
        )
        self._process.start()
        theirs.close()

    def __call__(self) -> float:
        self._connection.send(True)
        return self._connection.recv()

    def end(self) -> None:
        self._connection.send(False)
        self._process.join()


def _serve(
    connection: Connection, build: Callable, config: str, options: list[str], weights: str
) -> None:
    torch.manual_seed(0)
    cfg = load_config(str(ROOT / config), options)
    register_datasets(cfg.datasets)
    with contextlib.redirect_stdout(io.StringIO()):
        plan = plan_run(cfg, "inference", eval_only=True, weights=weights)
    rate = build(cfg, plan)
    while connection.recv():
        connection.send(rate())


def _ours(cfg: Any, plan: Plan) -> Callable[[], float]:
    model = build_model(cfg, plan)
    load_weights(model, plan.weights)
    suite = build_suite("dataloader.val", cfg.dataloader.val, cfg)

    def rate() -> float:
        start = time.perf_counter()
        (evaluation,) = suite.evaluate(model)
        return len(evaluation.records) / (time.perf_counter() - start)

    return rate


def _theirs(cfg: Any, plan: Plan) -> Callable[[], float]:
    model = instantiate(cfg.model).to(plan.device)
    load_weights(model, plan.weights)
    data, mapper = cfg.dataloader.val, cfg.dataloader.val.mapper
    mapper["_target_"] = DatasetMapper
    name = data.dataset.names
    loader = build_detection_test_loader(
        get_detection_dataset_dicts(name, filter_empty=False),
        mapper=instantiate(mapper),
        num_workers=data.num_workers,
    )
    evaluator = COCOEvaluator(
        name, ("bbox", "segm"), distributed=False, output_dir=cfg.train.output_dir
    )
    del MetadataCatalog.get(name).json_file  # the evaluator set it to a temporary file

    def rate() -> float:
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            inference_on_dataset(model, loader, evaluator)
        return len(loader.dataset) / (time.perf_counter() - start)

    return rate


def main() -> None:
    """Record the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--options", nargs="*", default=[])
    args = parser.parse_args()
    for name in args.only:
        _measure(name, FIGURES[name], [f"data.root={ORIGINALS}", *args.options])


if __name__ == "__main__":
    main()
