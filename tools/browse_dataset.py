#!/usr/bin/env python
"""Shows what the model will really see: a config's images before and after augmentation.

python tools/browse_dataset.py --config-file configs/balloon/mask_rcnn_lite0_fpn_balloon.py
python tools/browse_dataset.py --config-file X --html --count 100 data.root=/elsewhere
python tools/browse_dataset.py --config-file X --split val --all --no-augmentation

Left, an image as annotated; right, the very sample that a training takes at that place: cropped,
flipped and resized, with the objects that are left (crowds are not trained on). Exit status 1 if
images could not be shown.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.errors import run_tool
from d2ext.run_dir.logging import setup_logging


def _number(least: int):
    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= 10**12:
            raise argparse.ArgumentTypeError(f"{text!r} is no integer from {least} on")
        return int(text)

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="a recipe, or a run's config.yaml")
    add("--split", choices=("train", "val", "test"), default="train", help="(train)")
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument(
        "--count", type=_number(1), default=24, metavar="N", help="images to show (24)"
    )
    how_many.add_argument("--all", action="store_true", help="show each image once")
    add("--start", type=_number(0), default=0, metavar="N", help="place of the first image (0)")
    add("--seed", type=_number(0), metavar="S", help="of the training (the config's train.seed)")
    add("--output", metavar="DIR", help="a folder of its own (work_dirs/browse/<config>_<split>)")
    add("--html", action="store_true", help="one page that needs no other file, instead of JPEGs")
    add("--no-augmentation", action="store_true", help="the images as annotated only")
    add("overrides", nargs="*", metavar="key=value", help="changes to the config")
    return parser


def main() -> int:
    """Reads the command line and writes the pages; returns the exit status."""
    args = _parser().parse_intermixed_args()

    from d2ext.config.load import load_config

    setup_logging()
    overrides = args.overrides
    if args.seed is not None:
        overrides = [*overrides, f"+train.seed={json.dumps(args.seed)}"]
    cfg = load_config(args.config_file, overrides)

    from d2ext.inspect.browse import browse
    from d2ext.launch.command import run_name

    return browse(
        cfg,
        run_name(args.config_file),
        args.split,
        count=None if args.all else args.count,
        start=args.start,
        output=args.output,
        html=args.html,
        augmented=not args.no_augmentation,
    )


if __name__ == "__main__":
    run_tool(main)
