"""List the recipes that come with d2ext, by the names that every command accepts.

d2ext recipes
d2ext recipes lite0
"""

import argparse
from collections.abc import Sequence

from d2ext.cli.arguments import make_parser
from d2ext.config import recipes
from d2ext.errors import UserError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = make_parser("recipes", __doc__)
    help_text = "list only recipes with this text in their name or description"
    parser.add_argument("text", nargs="?", default="", metavar="TEXT", help=help_text)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Print the name and description of each recipe."""
    wanted = args.text.lower()
    found = {name: text for name, text in recipes.recipes() if wanted in f"{name} {text}".lower()}
    if not found:
        raise UserError(f"no recipe has {args.text!r} in its name or description")
    width = max(map(len, found))
    for name, text in found.items():
        print(f"{name:{width}}  {text}")
