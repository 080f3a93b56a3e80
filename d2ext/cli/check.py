"""Find what is wrong with a COCO file and its images, and write a fixed copy.

d2ext check train.json
d2ext check train.json --images photos --fix fixed.json --html report.html
d2ext check train.json --images photos --against val.json --against-images more

Exit status: 0 clean or warnings only, 1 errors, 2 unreadable. With --fix it is that of the new
file: 0; or 2 where nothing is written, because an error cannot be fixed without a loss.
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
        help="with --fix: also remove what you could still repair: images that are missing, damaged"
        " or malformed, and annotations outside of their image or of no image",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the findings as a page")
    parser.add_argument(
        "--against", type=Path, metavar="OTHER.json", help="find what this set has in common with"
    )
    parser.add_argument(
        "--against-images", type=Path, metavar="DIR", help="its images (default: as --images)"
    )
    parser.add_argument(
        "--decode",
        action=argparse.BooleanOptionalAction,
        help="decode every image to its last pixel (default: in sets of up to 500 images; of"
        " larger ones the headers are read)",
    )
    parser.add_argument(
        "--anchors",
        type=float,
        nargs="+",
        default=[32, 64, 128, 256, 512],
        metavar="PIXELS",
        help="sides of the anchors that object sizes are held against (default: FPN's, 32 to 512)",
    )
    parser.add_argument(
        "--short-side",
        type=int,
        default=800,
        metavar="PIXELS",
        help="short side that images are resized to in training (default: 800)",
    )
    parser.add_argument(
        "--max-detections",
        type=int,
        default=100,
        metavar="N",
        help="objects that a model and a metric take in an image (default: 100)",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Check the file; return the exit status."""
    if not all(0 < size < math.inf for size in (*args.anchors, args.short_side)):
        raise UserError("--anchors and --short-side are pixels: give positive numbers")
    if args.max_detections < 1:
        raise UserError("--max-detections: give a positive number")
    if args.drop_unusable and not args.fix:
        raise UserError("--drop-unusable without --fix OUT.json: name the file to write, too")
    if args.against_images and not args.against:
        raise UserError("--against-images without --against: name the other file, too")
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
