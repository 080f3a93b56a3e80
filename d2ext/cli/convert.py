"""Convert annotations to COCO, or from COCO to another format.

d2ext convert via via_region_data.json --images photos --output coco.json
d2ext convert via via.csv --images photos --class-attribute kind --output a.json
d2ext convert labelme annotations --images photos --output coco.json
d2ext convert yolo data.yaml --images images/train --output coco.json
d2ext convert yolo data.yaml --split val --images images --output coco.json
d2ext convert voc Annotations --images JPEGImages --output coco.json
d2ext convert cvat annotations.xml --images images --output coco.json
d2ext convert createml annotations.json --images photos --output coco.json
d2ext convert open_images boxes.csv --images photos --output coco.json
d2ext convert coco coco.json --to yolo_seg --output labels
d2ext convert labelme annotations --images photos --val 0.2 --output split

With --val, --output is a new folder for train.json and val.json, which are split as by
`d2ext split --images DIR`.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from d2ext.cli.arguments import make_parser
from d2ext.data.convert import convert_and_split, convert_from_coco, convert_to_coco
from d2ext.data.formats.format import formats
from d2ext.data.formats.registry import converted_formats, writers
from d2ext.data.splitting.split import SplitOptions
from d2ext.errors import UserError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = make_parser("convert", __doc__)
    commands = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("input", type=Path, metavar="INPUT", help="annotations to convert")
        sub.add_argument("--output", type=Path, required=True, help="file or folder to write")
        return sub

    for form in converted_formats():
        sub = add(form.name, form.source)
        sub.add_argument("--images", type=Path, required=True, metavar="DIR", help="image folder")
        sub.add_argument(
            "--classes", nargs="+", metavar="NAME", help="class names (default: those of the input)"
        )
        sub.add_argument(
            "--val", type=float, metavar="SHARE", help="share of the images to split off"
        )
        sub.add_argument("--seed", type=int, metavar="N", help="seed of --val (0)")
        for keyword, option in form.options.items():
            sub.add_argument(option.flag, dest=keyword, metavar="NAME", help=option.help)
    back = add("coco", "COCO: the JSON file; --to names the format to write")
    others = [name for name in writers() if name != "coco"]
    back.add_argument("--to", choices=others, required=True, help="the format to write")
    back.add_argument(
        "--images", type=Path, metavar="DIR", help="image folder, for files of LabelMe and VIA"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Convert the annotations, and print what was written."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if args.format == "coco":
        print(convert_from_coco(args.input, args.to, args.output, args.images))
    else:
        options = {keyword: getattr(args, keyword) for keyword in formats()[args.format].options}
        arguments = args.format, args.input, args.images, args.output, args.classes
        if args.val is None:
            if args.seed is not None:
                raise UserError(f"--seed {args.seed} needs --val, which is not given; add it")
            print(convert_to_coco(*arguments, **options))
        else:
            split = SplitOptions(args.val, seed=args.seed or 0)
            print("\n".join(convert_and_split(*arguments, split, **options)))
