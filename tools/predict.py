#!/usr/bin/env python
"""Finds objects in images, folders and videos with a trained model.

python tools/predict.py --config-file work_dirs/mine/config.yaml --weights best photos/
python tools/predict.py --config-file X --weights last --splash --cutouts a.jpg b.jpg film.mp4
python tools/predict.py --config-file X --weights last --csv --masks photos/

Writes overlays, and predictions.json and images.json as COCO has them. Exit status 1 if a file
could not be read, or a video not to its end; the others are done.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.errors import run_tool
from d2ext.run_dir.logging import setup_logging


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="images, videos, folders of both")
    add("--config-file", required=True, metavar="FILE", help="a run's config.yaml, or a recipe")
    add("--weights", default="best", metavar="best|last|FILE", help="(best)")
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
    return parser


def main() -> int:
    """Reads the command line and predicts; returns the exit status."""
    args = _parser().parse_args()
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


if __name__ == "__main__":
    run_tool(main)
