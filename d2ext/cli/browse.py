"""Show what the model will see: a config's images before and after augmentation.

d2ext browse mine.py
d2ext browse mine.py --html --count 100 data.root=/elsewhere
d2ext browse mine.py --split val --all --no-augmentation

Each image is shown as annotated (left) and exactly as training will see it at that position
(right): cropped, flipped and resized, with the remaining objects (crowds are not trained on).
Exits with status 1 if an image could not be shown.
"""

import argparse
import json
from collections.abc import Callable, Sequence

from d2ext.cli.arguments import add_config, make_parser, take_config
from d2ext.run_dir.logging import setup_logging


def _number(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= 10**12:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not an integer from {least} to 1000000000000"
            )
        return int(text)

    return read


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = make_parser("browse", __doc__, "CONFIG [flags] [key=value ...]")
    add_config(parser)
    add = parser.add_argument
    add("--split", choices=("train", "val", "test"), default="train", help="split to show (train)")
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument(
        "--count", type=_number(1), default=24, metavar="N", help="images to show (24)"
    )
    how_many.add_argument("--all", action="store_true", help="show each image once")
    add("--start", type=_number(0), default=0, metavar="N", help="position of the first image (0)")
    add("--seed", type=_number(0), metavar="S", help="seed of the run (the config's train.seed)")
    add("--output", metavar="DIR", help="output folder (work_dirs/browse/<config>_<split>)")
    add("--html", action="store_true", help="write one self-contained page instead of JPEGs")
    add("--no-augmentation", action="store_true", help="show the annotated images only")
    add("overrides", nargs="*", metavar="key=value", help="config overrides")
    args = parser.parse_intermixed_args(argv)
    args.overrides = take_config(parser, args, args.overrides)
    return args


def run(args: argparse.Namespace) -> int:
    """Write the pages; return the exit status."""
    from d2ext.config.load import load_config

    setup_logging()
    overrides = args.overrides
    if args.seed is not None:
        overrides = [*overrides, f"+train.seed={json.dumps(args.seed)}"]
    cfg = load_config(args.config_file, overrides)

    from d2ext.inspect.browse import browse
    from d2ext.run_dir.names import run_name

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
