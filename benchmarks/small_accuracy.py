"""Compare recipes on small datasets: AP and CPU time, for several seeds.

    python benchmarks/small_sets.py SETS
    python benchmarks/small_accuracy.py SETS/signs SETS/chess --seeds 0 1 \
        --config 0.1=custom/mask_rcnn_lite0_fpn.py data.auto=False \
        --config new=custom/mask_rcnn_lite0_fpn.py --runs RUNS

A set is a folder with train.json, val.json and images/. Each run is tools/train_net.py in a new
process, and its numbers are those of its last evaluation, not of the best one. With `--threads 1
--parallel 2`, two runs share the machine; only their CPU time is reported then. Finished runs in
`--runs` are not repeated. `--json` and `--svg` write the curves.
"""

import argparse
import sys
from pathlib import Path

from recipe_runs import add_arguments, compare, recipes_of

CONFIG = "custom/mask_rcnn_lite0_fpn.py"


def _data(folder: Path) -> list[str]:
    """Return the overrides that choose a set."""
    folder = folder.resolve()
    return [
        f"data.{split}.{key}={folder / name}"
        for split in ("train", "val")
        for key, name in (("json", f"{split}.json"), ("images", "images"))
    ]


def main() -> None:
    """Do the runs, and print Markdown tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="folders of the sets")
    add_arguments(parser, CONFIG, [0])
    args = parser.parse_args()
    for folder in args.sets:
        if not (folder / "train.json").exists():
            sys.exit(f"error: {folder / 'train.json'} does not exist; make sets with small_sets.py")
    compare(args, recipes_of(args), {folder.name: _data(folder) for folder in args.sets})


if __name__ == "__main__":
    main()
