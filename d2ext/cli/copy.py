"""Copy a recipe to your own config file, which works in any folder.

d2ext copy custom/mask_rcnn_lite0_fpn.py mine.py
d2ext train mine.py
"""

import argparse
import shlex
from collections.abc import Sequence

from d2ext.cli.arguments import make_parser
from d2ext.config.recipes import copy_recipe
from d2ext.invocation import command


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = make_parser("copy", __doc__)
    name = f"recipe, as printed by `{command('recipes')}`"
    parser.add_argument("name", metavar="NAME", help=name)
    parser.add_argument("destination", metavar="DEST", help="new .py file, or a folder")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Write the copy, and print the command that trains it."""
    written = copy_recipe(args.name, args.destination)
    train = f"{command('train')} {shlex.quote(str(written))}"
    print(f"wrote {written}, a copy of {args.name}; train it with: {train}")
