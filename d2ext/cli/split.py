"""Split a COCO file into train.json and val.json, or into the folds of a cross-validation.

d2ext split a.json --images imgs --output split
d2ext split a.json --images imgs --val 0.3 --seed 1 --group-by '^(.*?)_frame' --output split
d2ext split a.json --images imgs --folds 5 --output folds

Each class has about the same share of the objects on both sides, and images with few, many or no
objects are on both. Images that look alike (--images), share a match of --group-by or have the same
file name are never on both sides. The same file, options and photos give the same split. Entries
and other fields of the file are copied unchanged. `d2ext convert FORMAT ... --val 0.2` splits the
annotations of other formats.

Exits with status 0, or with 2 if nothing was written.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2ext.cli.arguments import make_parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = make_parser("split", __doc__)
    parser.add_argument("json", type=Path, metavar="JSON", help="the COCO file")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of its images, to find near-duplicates"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder to create"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--val",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="share of the images for validation (default: 0.2)",
    )
    size.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="write fold_1 to fold_K; each image is in exactly one val.json",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the split (default: 0)"
    )
    parser.add_argument(
        "--group-by",
        metavar="REGEX",
        help="keep images together whose file names have the same match, or the same capture groups"
        " if there are any",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Split the file, and print what became of it."""
    from d2ext.data.splitting.coco import split_coco
    from d2ext.data.splitting.split import SplitOptions

    options = SplitOptions(args.val, args.folds, args.seed, args.group_by)
    print("\n".join(split_coco(args.json, args.output, args.images, options)))
