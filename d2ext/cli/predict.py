"""Find objects in images, folders and videos with a trained model.

d2ext predict work_dirs/mine photos/
d2ext predict work_dirs/mine --weights last --splash --cutouts a.jpg b.jpg film.mp4
d2ext predict mine.py --weights model.pth --csv --masks photos/

Writes overlays, and predictions.json and images.json in COCO's format. Exit status 1 if a file or a
part of a video could not be read; the others are done.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2ext.cli.arguments import add_config, make_parser, run_folder, take_config
from d2ext.run_dir.logging import setup_logging
from d2ext.run_dir.names import usual_weights


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no score from 0 to 1")
    return value


def _size(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of images from 1 to 1024")
    return int(text)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = make_parser("predict", __doc__, "RUN [flags] INPUT [INPUT ...]")
    add_config(parser)
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="images, videos, folders of both")
    add("--weights", metavar="best|last|FILE", help="(best, or last if a run has no best)")
    out = Path("work_dirs/predict")
    replaces = f"replaces an earlier call's ({out})"
    add("--output", type=Path, default=out, metavar="DIR", help=replaces)
    add("--score-threshold", type=_score, default=0.5, metavar="S", help="(0.5)")
    add("--classes", nargs="+", metavar="NAME", help="keep these classes only")
    add("--batch-size", type=_size, default=1, metavar="N", help="images at a time (1)")
    add("--no-overlays", action="store_true", help="the JSON files alone")
    add("--cutouts", action="store_true", help="each object as a PNG, transparent around it")
    add("--csv", action="store_true", help="detections.csv, and counts.csv by image and class")
    add("--masks", action="store_true", help="a PNG for each image: pixel k is of its k-th object")
    add("--splash", action="store_true", help="the images in grey but for the objects")
    add("--options", nargs="+", default=[], metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args(argv)
    args.inputs = take_config(parser, args, args.inputs)
    if not args.inputs:
        parser.error("the following arguments are required: INPUT")
    if not args.weights:
        folder = run_folder(args.config_file)
        args.weights = usual_weights(folder) if folder else "best"
    return args


def run(args: argparse.Namespace) -> int:
    """Predict; return the exit status."""
    setup_logging()

    from d2ext.predict.predictor import Predictor
    from d2ext.predict.writers import predict_files

    predictor = Predictor.from_config(
        args.config_file, args.weights, args.options, args.score_threshold, args.classes
    )
    return predict_files(
        predictor,
        args.inputs,
        args.output,
        batch_size=args.batch_size,
        overlays=not args.no_overlays,
        cutouts=args.cutouts,
        splash=args.splash,
        csv=args.csv,
        masks=args.masks,
    )
