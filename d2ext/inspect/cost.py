"""Measure a config's model: parameters, FLOPs, and the time and memory of a step."""

import contextlib
import logging
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.analysis import FlopCountAnalysis
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import nn

from d2ext.config.choices import is_auto, recipe_of
from d2ext.config.options import TrainOptions
from d2ext.config.tiles import tile_options
from d2ext.data.fitting.fit import kept_choices
from d2ext.data.loading.sample_errors import Failure, ReportFailures, RleAsBitmaps
from d2ext.data.loading.tiles import mapper_of_tiles
from d2ext.data.tiles.records import tile_with_objects
from d2ext.engine.builders import build_model, build_optimizer
from d2ext.engine.dry_step import misfits_explained
from d2ext.engine.losses import losses_of
from d2ext.engine.resource_errors import resource_errors_explained
from d2ext.engine.techniques import autocast
from d2ext.errors import UserError, config_errors, format_exception
from d2ext.evaluation.suite import test_sets
from d2ext.inspect.samples import planned_config
from d2ext.launch.device import choose_device
from d2ext.preflight.plan import Plan
from d2ext.seeding import generators_seeded
from d2ext.text import shortened

logger = logging.getLogger(__name__)

_WIDTH, _HEIGHT = 640, 480  # of the photo that replaces missing data
_KEYPOINTS = 17  # of its objects, as in COCO
_CLASSES = [f"class {i}" for i in range(1, 81)]  # as many as COCO has, if the data are missing
_COSTLY = ("attention", "conv", "mm", "roi_align", "embedding_bag", "grid_sampl")  # operators
_MOST_STEPS, _SECONDS = 5, 30.0  # to measure, after one that is not


def analyze(cfg: Any) -> Iterator[str]:
    """Yield lines with the size and the cost of a config's model, as they are measured.

    One image is used: the first of the validation set with objects, or a random photo if the data
    are missing. The model has random weights, so an inference may find fewer objects than after
    training.

    Args:
        cfg: Config returned by `load_config`.

    Raises:
        UserError: The model cannot be built, or a step fails.
    """
    options = TrainOptions.from_config(cfg.train)
    device, description = choose_device(options.device, 1)
    yield f"device      {description}"
    with tempfile.TemporaryDirectory() as folder, generators_seeded(0):
        cfg, record, classes, source = _record(cfg, Path(folder))
        if tiles := tile_options(cfg):
            record = tile_with_objects(record, tiles)
            source += f", a tile of {record['width']} x {record['height']} pixels"
        yield f"image       {source}"
        model = build_model(cfg, Plan(Path(), device, classes, {}, None, "", None, None, []))
        yield from _parameters(model)
        with misfits_explained(cfg, model), _memory_explained():
            # Inference first, because the process's peak memory does not decrease.
            sample = _sample(cfg, "val" if cfg.dataloader.get("val") else "train", record)
            infer = _inference(model, sample, options, device)
            yield f"inference   {_measured(infer, device)} for {_size(sample)}"
            learned = _sample(cfg, "train", record)
            step = _training_step(cfg, model, learned, options, device)
            yield f"training    {_measured(step, device)} for {_size(learned)}"
        yield f"FLOPs       {_flops(model.eval(), sample)}"


def _record(cfg: Any, folder: Path) -> tuple[Any, dict, list[str], str]:
    """Return the config as a run uses it, a dataset dict, the classes, and the image's name."""
    if is_auto(cfg):  # errors here, unlike those of missing data, concern every image
        recipe_of(cfg)
        if run := cfg.train.get("output_dir"):
            kept_choices(Path(run))
    try:
        cfg = planned_config(cfg)
        names = test_sets(cfg.dataloader.get("val") or cfg.dataloader.train)
        if not names:
            raise UserError("the loader has no dataset.names")
        name = names[0]
        with config_errors(f"datasets.{name}"):
            records = DatasetCatalog.get(name)
        if not records:
            raise UserError(f"dataset {name!r} has no images")
        record = next((r for r in records if r.get("annotations")), records[0])
        if not Path(record["file_name"]).is_file():
            raise UserError(f"{record['file_name']} does not exist")
    except UserError as e:
        record = _random_record(folder)
        reason = str(e.__cause__ or e).partition(";")[0]
        source = f"a random photo of {_WIDTH} x {_HEIGHT}, without data: {reason}"
        return cfg, record, _CLASSES, source
    # Datasets for semantic segmentation have only `stuff_classes`.
    classes = list(MetadataCatalog.get(name).get("thing_classes", ()))
    return cfg, record, classes, record["file_name"]


def _random_record(folder: Path) -> dict:
    """Write a random photo and a label map; return a dataset dict with an object of each size."""
    pixels = np.random.default_rng(0).integers(0, 255, (_HEIGHT, _WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    Image.fromarray(np.zeros((_HEIGHT, _WIDTH), np.uint8)).save(folder / "labels.png")
    annotations = []
    for category, side in enumerate((24, 64, 160)):
        x0, y0, x1, y1 = box = [100 + side, 100, 100 + 2 * side, 100 + side]
        annotations.append(
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 0 if category else 1,
                "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                "keypoints": [x0 + side / 2, y0 + side / 2, 2] * _KEYPOINTS,
                "iscrowd": 0,
            }
        )
    return {
        "file_name": str(folder / "photo.png"),
        "sem_seg_file_name": str(folder / "labels.png"),
        "image_id": 1,
        "width": _WIDTH,
        "height": _HEIGHT,
        "annotations": annotations,
    }


def _sample(cfg: Any, split: str, record: dict) -> dict:
    with config_errors(f"dataloader.{split}.mapper"):
        mapper = mapper_of_tiles(instantiate(cfg.dataloader[split].mapper), [record])
        sample = ReportFailures(RleAsBitmaps(mapper))(record)
    if isinstance(sample, Failure):
        raise UserError(sample.message)
    return sample


def _parameters(model: nn.Module) -> Iterator[str]:
    yield f"parameters  {_counts(model)}"
    for name, part in model.named_children():
        if any(True for _ in part.parameters()):
            yield f"            {name}: {_counts(part)}"


def _counts(module: nn.Module) -> str:
    numbers = [(p.numel(), p.requires_grad) for p in module.parameters()]
    total, trained = sum(n for n, _ in numbers), sum(n for n, trains in numbers if trains)
    return f"{total / 1e6:.2f} million, {trained / 1e6:.2f} million of which train"


def _inference(
    model: nn.Module, sample: dict, options: TrainOptions, device: str
) -> Callable[[], object]:
    precision = autocast(options.amp, device)

    def infer() -> None:
        with torch.no_grad(), precision():
            model([sample])

    model.eval()
    return infer


def _training_step(
    cfg: Any, model: nn.Module, sample: dict, options: TrainOptions, device: str
) -> Callable[[], object]:
    """Return a function that runs one step, with a rate of 0 so that random weights stay finite."""
    model.train()
    optimizer = build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    precision = autocast(options.amp, device)

    def step() -> None:
        with EventStorage():
            with precision():
                losses = losses_of(model([sample]))
            sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _measured(run: Callable[[], object], device: str) -> str:
    """Return the median seconds of a function and the peak memory, as text."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    begin = time.perf_counter()
    run()  # the first call allocates memory and chooses kernels
    while not times or len(times) < _MOST_STEPS and time.perf_counter() - begin < _SECONDS:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    if device == "cuda":
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of GPU memory"
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        memory = f"{peak:.2f} GiB of memory, the peak of the process"
    return f"{statistics.median(times):.3g} s (median of {len(times)}) and {memory},"


def _size(sample: dict) -> str:
    height, width = sample["image"].shape[-2:]
    return f"one image of {width} x {height}"


def _flops(model: nn.Module, sample: dict) -> str:
    """Count the FLOPs of an inference with fvcore, in which a multiply-add is one."""
    try:
        with torch.no_grad():
            counted = FlopCountAnalysis(model, [sample])
            counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            counted.tracer_warnings("none")
            total, skipped = counted.total(), counted.unsupported_ops()
    except Exception as e:  # not every model can be traced
        return f"unknown: the model cannot be traced ({format_exception(e)})"
    costly = [name for name, _ in skipped.most_common() if any(word in name for word in _COSTLY)]
    names = shortened([*costly, "elementwise operations"], 6)
    return f"{total / 1e9:.4g} G multiply-adds for {_size(sample)} (not counted: {names})"


def _memory_explained() -> contextlib.AbstractContextManager:
    return resource_errors_explained(
        lambda: "in a step with one image",
        "use smaller images (dataloader.train.mapper.augmentations) or a smaller model",
    )
