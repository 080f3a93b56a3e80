"""Turn a config of MMDetection into a LazyConfig.

d2ext import-mmdet configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py
d2ext import-mmdet my_config.py epoch_12.pth --output my_d2ext_config.py

MMDetection need not be installed. The config is not executed: assignments, expressions and calls of
dict, list and the like are interpreted. The second file that is written, with the suffix .md, lists
each field of the config and what became of it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2ext.cli.arguments import make_parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = make_parser("import-mmdet", __doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="config of MMDetection (.py)")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        metavar="CHECKPOINT",
        help="initial weights, as a file or an address (default: those of the config)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write (default: the config's name, in the current folder)",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="execute the config and its bases, for code that is not interpreted; use it only for"
        " files that you trust",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Write the LazyConfig and the table, and print a summary."""
    from d2ext.config.mmdetection.importer import import_config

    print(import_config(args.config, args.checkpoint, args.output, args.trust))
