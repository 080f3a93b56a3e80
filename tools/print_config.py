#!/usr/bin/env python
"""Prints a config: all of it, what it changes of another, or what each key means.

python tools/print_config.py configs/balloon/mask_rcnn_lite0_fpn_balloon.py optimizer.lr=1e-3
python tools/print_config.py X --diff configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py
python tools/print_config.py X --docs
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.errors import run_tool
from d2ext.run_dir.logging import setup_logging


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("config_file", metavar="FILE", help="a recipe, or a run's config.yaml")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--diff", metavar="BASE", help="only what differs from this config")
    how.add_argument(
        "--docs", action="store_true", help="every key: type, value, default where another, meaning"
    )
    add("overrides", nargs="*", metavar="key=value", help="changes to the config")
    return parser


def main() -> int:
    """Prints what the command line asks for; returns the exit status."""
    args = _parser().parse_intermixed_args()
    setup_logging(quiet=True)

    from d2ext.config.describe import difference, keys, starting_point, whole
    from d2ext.config.load import load_config

    cfg = load_config(args.config_file, args.overrides)
    if args.diff:
        lines = difference(cfg, load_config(args.diff))
        print("\n".join(lines) or f"nothing differs from {args.diff}")
    elif args.docs:
        for key in keys(cfg, starting_point(args.config_file)):
            changed = key.default not in (None, key.value)
            default = f", default {key.default}" if changed else ""
            print(f"{key.name} ({key.kind}): {key.value}{default}\n    {key.meaning}")
    else:
        print(whole(cfg), end="")
    return 0


if __name__ == "__main__":
    run_tool(main)
