"""Find errors in a COCO file and its images, and write a fixed copy.

d2ext check train.json
d2ext check train.json --images photos --fix fixed.json --html report.html
d2ext check train.json --images photos --against val.json --against-images more

Exits with status 0 if the file is clean or has warnings only, 1 if it has errors, and 2 if it
cannot be read. With --fix, the status describes the new file: 0, or 2 if nothing was written
because an error cannot be fixed without losing data.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from d2ext.cli.arguments import make_parser
from d2ext.errors import UserError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = make_parser("check", __doc__)
    parser.add_argument("json", type=Path, metavar="JSON", help="the COCO file")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of its images")
    parser.add_argument(
        "--fix", type=Path, metavar="OUT.json", help="write a file without the errors"
    )
    parser.add_argument(
        "--drop-unusable",
        action="store_true",
        help="with --fix: also remove entries that you could still repair: missing, damaged or"
        " malformed images, and annotations that are outside their image or have no image",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write the findings as an HTML page"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="OTHER.json",
        help="find images that are also in this COCO file, and compare the categories",
    )
    parser.add_argument(
        "--against-images",
        type=Path,
        metavar="DIR",
        help="folder of the other file's images (default: --images)",
    )
    parser.add_argument(
        "--decode",
        action=argparse.BooleanOptionalAction,
        help="decode every image completely (default: for up to 500 images; in larger datasets"
        " only the headers are read)",
    )
    parser.add_argument(
        "--anchors",
        type=float,
        nargs="+",
        default=[32, 64, 128, 256, 512],
        metavar="PIXELS",
        help="anchor sizes to compare object sizes with (default: FPN's, 32 to 512)",
    )
    parser.add_argument(
        "--short-side",
        type=int,
        default=800,
        metavar="PIXELS",
        help="short side to which training resizes images (default: 800)",
    )
    parser.add_argument(
        "--max-detections",
        type=int,
        default=100,
        metavar="N",
        help="objects per image that a model returns and a metric counts (default: 100)",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Check the file; return the exit status."""
    if not all(0 < size < math.inf for size in (*args.anchors, args.short_side)):
        raise UserError("--anchors and --short-side are in pixels: give positive numbers")
    if args.max_detections < 1:
        raise UserError(f"--max-detections {args.max_detections}: give a positive number")
    if args.drop_unusable and not args.fix:
        raise UserError("--drop-unusable needs --fix OUT.json, the file to write")
    if args.against_images and not args.against:
        raise UserError("--against-images needs --against OTHER.json, the other file")
    from d2ext.data.validation.coco.check_file import check_coco_file
    from d2ext.data.validation.coco.checks.statistics import Anchors
    from d2ext.data.validation.coco.source import Source

    source = Source(
        args.json,
        args.images,
        args.against,
        args.against_images,
        args.decode,
        Anchors(sizes=args.anchors, short_side=args.short_side),
        args.max_detections,
    )
    return check_coco_file(source, args.fix, args.html, args.drop_unusable)
