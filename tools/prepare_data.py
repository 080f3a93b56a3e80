#!/usr/bin/env python
"""Puts a dataset where the recipes look for it.

python tools/prepare_data.py balloon
python tools/prepare_data.py balloon --root /data --synthetic
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.errors import run_tool


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    balloon = datasets.add_parser(
        "balloon",
        help="61 + 13 photos of balloons; drawn ones where they cannot be downloaded",
        description="Checks ROOT/balloon/{train,val}, or downloads it (38 MB), or draws it.",
        allow_abbrev=False,
    )
    balloon.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("DETECTRON2_DATASETS") or "datasets"),
        help="folder of the datasets (default: $DETECTRON2_DATASETS, else datasets)",
    )
    balloon.add_argument(
        "--synthetic", action="store_true", help="draw synthetic balloons, download nothing"
    )
    return parser


def main() -> None:
    """Prepares the dataset that the command line names, and says what is there."""
    args = _parser().parse_args()

    from d2ext.data.balloon import prepare_balloon

    print(prepare_balloon(args.root, args.synthetic))


if __name__ == "__main__":
    run_tool(main)
