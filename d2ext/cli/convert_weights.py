"""Convert a checkpoint between the tensor names of MMDetection and Detectron2.

d2ext convert-weights mmdet mask_rcnn_r50_fpn_1x_coco.pth ours.pth
d2ext convert-weights work_dirs/mine/model_final.pth theirs.pth --to mmdet

Training and evaluation read MMDetection's checkpoints as they are.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from d2ext.cli.arguments import make_parser

_MMDETECTION = "mmdet"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    usage = "mmdet FILE OUT | FILE OUT --to mmdet"
    parser = make_parser("convert-weights", __doc__, usage)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="FILE",
        help="checkpoint to convert and file to write; mmdet before them for MMDetection's names",
    )
    parser.add_argument("--to", choices=[_MMDETECTION], help="write MMDetection's names")
    args = parser.parse_args(argv)
    *origin, source, destination = ["", *args.words] if len(args.words) < 2 else args.words
    if origin != ([] if args.to else [_MMDETECTION]):
        parser.error(f"give {usage.replace(' | ', ' or ')}")
    args.source, args.destination = Path(source), Path(destination)
    return args


def run(args: argparse.Namespace) -> None:
    """Write the file, and print what it holds."""
    from d2ext.checkpoint.weights.convert import convert_from_mmdetection, convert_to_mmdetection

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    convert = convert_to_mmdetection if args.to else convert_from_mmdetection
    print(convert(args.source, args.destination))
