"""Print a config, its differences from another config, or the meaning of each key.

d2ext print-config custom/mask_rcnn_lite0_fpn.py optimizer.lr=1e-3
d2ext print-config mine.py --diff mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py
d2ext print-config mine.py --docs
"""

import argparse
from collections.abc import Sequence

from d2ext.cli.arguments import add_config, make_parser, take_config
from d2ext.config.recipes import find_config
from d2ext.run_dir.logging import setup_logging


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = make_parser("print-config", __doc__, "CONFIG [flags] [key=value ...]")
    add_config(parser)
    add = parser.add_argument
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--diff", metavar="BASE", help="print only the differences from this config")
    how.add_argument(
        "--docs",
        action="store_true",
        help="print each key's type, value, default if it differs, and meaning",
    )
    add("overrides", nargs="*", metavar="key=value", help="config overrides")
    args = parser.parse_intermixed_args(argv)
    args.overrides = take_config(parser, args, args.overrides)
    return args


def run(args: argparse.Namespace) -> int:
    """Print the config, the differences or the keys; return the exit status."""
    setup_logging(quiet=True)

    from d2ext.config.describe import difference, keys, starting_point, whole
    from d2ext.config.load import load_config

    cfg = load_config(args.config_file, args.overrides)
    if args.diff:
        lines = difference(cfg, load_config(find_config(args.diff)))
        print("\n".join(lines) or f"nothing differs from {args.diff}")
    elif args.docs:
        for key in keys(cfg, starting_point(args.config_file)):
            changed = key.default not in (None, key.value)
            default = f", default {key.default}" if changed else ""
            print(f"{key.name} ({key.kind}): {key.value}{default}\n    {key.meaning}")
    else:
        print(whole(cfg), end="")
    return 0
