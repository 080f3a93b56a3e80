"""Measure recipes on the balloon photos as a user runs them: AP, and time from command to report.

    python benchmarks/balloon_demo.py --seeds 0 1 2 [--options data.root=...]
    python benchmarks/balloon_demo.py --config 0.1=balloon/mask_rcnn_lite0_fpn_balloon.py \
        --config new=mine.py train.max_epochs=66

Each run is tools/train_net.py in a new process. The numbers are those of its last evaluation, not
of the best one, on the 13 validation photos. The second table has the means over the seeds, and
how much longer each recipe takes than the first. The photos are those of the checkout, or those in
`data.root`; the first line says which.
"""

import argparse

from common import ROOT
from recipe_runs import add_arguments, compare, recipes_of

from d2ext.config.load import load_config
from d2ext.data.prepare.balloon import describe_balloon

CONFIG = "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"


def main() -> None:
    """Do the runs, and print Markdown tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, CONFIG, [0, 1, 2])
    args = parser.parse_args()
    photos = ROOT / load_config(ROOT / CONFIG, args.options).data.root / "balloon"
    print(describe_balloon(photos))
    compare(args, recipes_of(args), {"balloon": ()})


if __name__ == "__main__":
    main()
