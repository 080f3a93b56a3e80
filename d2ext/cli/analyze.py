"""Print a model's parameters, FLOPs, and the time and memory of a step on this machine.

d2ext analyze mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py
d2ext analyze mine.py train.device=cpu train.freeze=[backbone.bottom_up]

The cost is that of one image of the validation set; if the data are missing, that of a random photo
of 640 x 480, resized as the config says. A training step is a forward pass, a backward pass and an
update. The model has random weights. A multiply-add counts as one FLOP, as in papers.
"""

import argparse
from collections.abc import Sequence

from d2ext.cli.arguments import add_config, make_parser, take_config
from d2ext.run_dir.logging import setup_logging


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = make_parser("analyze", __doc__, "CONFIG [flags] [key=value ...]")
    add_config(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides")
    args = parser.parse_intermixed_args(argv)
    args.overrides = take_config(parser, args, args.overrides)
    return args


def run(args: argparse.Namespace) -> int:
    """Print the lines as they are measured; return the exit status."""
    setup_logging(quiet=True)

    from d2ext.config.load import load_config

    cfg = load_config(args.config_file, args.overrides)

    from d2ext.inspect.cost import analyze

    for line in analyze(cfg):
        print(line, flush=True)
    return 0
