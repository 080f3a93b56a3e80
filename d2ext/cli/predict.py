"""Detect objects in images, folders and videos with a trained model.

d2ext predict work_dirs/mine photos/
d2ext predict work_dirs/mine --weights last --splash --cutouts a.jpg b.jpg film.mp4
d2ext predict mine.py --weights model.pth --csv --masks photos/
d2ext predict work_dirs/mine photos/ --annotations labelme --rank uncertain
d2ext predict work_dirs/mine/export/model.onnx photos/
d2ext predict work_dirs/mine photos/ --num-gpus 8

Writes overlays, and predictions.json and images.json in COCO format. Files and parts of videos
that cannot be read are skipped; the exit status is then 1. An exported model (a .onnx file in place
of the run) runs in onnxruntime.

With --num-gpus, several processes share the photos and write the same files as a single one. Each
video is processed by one of them.
"""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from d2ext.cli.arguments import add_config, make_parser, take_config
from d2ext.predict.names import ANNOTATIONS, RANKS
from d2ext.run_dir.logging import setup_logging

logger = logging.getLogger(__name__)

# Seconds that a process waits for the others, one of which may have the longest video: a week.
_TIMEOUT = 7 * 24 * 3600.0


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a score from 0 to 1")
    return value


def _size(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1 to 1024")
    return int(text)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = make_parser("predict", __doc__, "RUN [flags] INPUT [INPUT ...]")
    add_config(parser)
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="images, videos, or folders of both")
    add("--weights", metavar="best|last|FILE", help="(best if there is one, else last)")
    out = Path("work_dirs/predict")
    replaces = f"output folder; replaces earlier predictions in it ({out})"
    add("--output", type=Path, default=out, metavar="DIR", help=replaces)
    add("--score-threshold", type=_score, default=0.5, metavar="S", help="lowest score (0.5)")
    add("--classes", nargs="+", metavar="NAME", help="keep only these classes")
    processes = "processes that share the photos: one per GPU, or CPU processes (1)"
    add("--num-gpus", type=int, default=1, metavar="N", help=processes)
    add("--batch-size", type=_size, default=1, metavar="N", help="images per batch (1)")
    add("--no-overlays", action="store_true", help="do not draw the detections")
    add("--cutouts", action="store_true", help="write each object as a PNG, transparent around it")
    add("--csv", action="store_true", help="write detections.csv and counts.csv (per class)")
    add("--masks", action="store_true", help="write a label PNG per image: k marks object k")
    add("--splash", action="store_true", help="write images with only the objects in color")
    tool = "write annotations to correct in a tool; earlier ones are never replaced"
    add("--annotations", choices=list(ANNOTATIONS), help=tool)
    order = "write rank.json and rank.txt: the photos in the order in which to label them"
    add("--rank", choices=RANKS, help=order)
    add("--options", nargs="+", default=[], metavar="key=value", help="config overrides")
    args = parser.parse_intermixed_args(argv)
    args.onnx = _take_onnx(parser, args)
    if not args.onnx:
        args.inputs = take_config(parser, args, args.inputs, "RUN")
    if not args.inputs:
        parser.error("the following arguments are required: INPUT")
    return args


def _take_onnx(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str | None:
    """Return the exported model in place of the config, without it in `inputs`; None for others."""
    given = args.config_file or next(iter(args.inputs), "")
    if not given.endswith(".onnx"):
        return None
    if args.weights or args.options:
        parser.error(f"{given} contains weights and config; omit --weights and --options")
    args.inputs = args.inputs if args.config_file else args.inputs[1:]
    return given


def run(args: argparse.Namespace) -> int:
    """Predict; return the exit status."""
    setup_logging()

    from d2ext.launch.device import choose_device
    from d2ext.launch.spawn import start_ranks
    from d2ext.launch.topology import find_topology
    from d2ext.predict.predictor import Predictor
    from d2ext.predict.worker import predict_rank
    from d2ext.predict.writers import (
        exchange_folder,
        predict_files,
        prepare_files,
        remove_leftovers,
    )

    chosen = args.score_threshold, args.classes
    if args.onnx:
        load = partial(Predictor.from_onnx, args.onnx, *chosen)
    else:
        model = args.config_file, args.weights, args.options
        load = partial(Predictor.from_config, *model, *chosen)
    predict = partial(
        predict_files,
        inputs=args.inputs,
        output=args.output,
        batch_size=args.batch_size,
        overlays=not args.no_overlays,
        cutouts=args.cutouts,
        splash=args.splash,
        csv=args.csv,
        masks=args.masks,
        annotations=args.annotations,
        rank=args.rank is not None,
    )
    topology = find_topology({}, args.num_gpus, num_machines=1, machine_rank=0)
    if topology.world_size == 1:
        return predict(load())
    # Errors of one rank name it, and come only after the model has been loaded.
    prepare_files(args.inputs, args.output, args.annotations, args.rank is not None)
    device, described = choose_device("cpu" if args.onnx else _requested(args), args.num_gpus)
    logger.info("%s", described)
    exchange = exchange_folder(args.output)
    try:
        task = load, partial(predict, exchange=exchange)
        return start_ranks(topology, predict_rank, task, _TIMEOUT, device, exchange)
    finally:
        remove_leftovers(args.output, exchange)


def _requested(args: argparse.Namespace) -> str:
    """Return the device that the config requests."""
    from d2ext.config.load import load_config
    from d2ext.config.options import TrainOptions

    return TrainOptions.from_config(load_config(args.config_file, args.options).train).device
