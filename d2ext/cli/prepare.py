"""Set up a dataset where the recipes look for it, and download a recipe's initial weights.

d2ext prepare balloon --root /data
d2ext prepare balloon --full
d2ext prepare coco --parts annotations val2017
d2ext prepare coco --stuff
d2ext prepare voc
d2ext prepare open_images
d2ext prepare cityscapes
d2ext prepare --weights mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from d2ext.cli.arguments import make_parser
from d2ext.config.recipes import find_config
from d2ext.data.prepare.balloon import prepare_balloon
from d2ext.data.prepare.cityscapes import check_cityscapes
from d2ext.data.prepare.coco2017 import PARTS, STUFF, prepare_coco
from d2ext.data.prepare.open_images import check_open_images
from d2ext.data.prepare.voc import IMAGE_SETS, prepare_voc


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    weights = argparse.ArgumentParser(add_help=False)
    weights.add_argument(
        "--weights",
        metavar="CONFIG",
        default=argparse.SUPPRESS,  # a subparser's default would overwrite a value given before it
        help="download this recipe's initial weights to $D2EXT_CACHE",
    )
    common = argparse.ArgumentParser(add_help=False, parents=[weights])
    common.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("DETECTRON2_DATASETS") or "datasets"),
        help="folder of the datasets (default: $DETECTRON2_DATASETS, or datasets)",
    )
    parser = make_parser("prepare", __doc__, parents=[weights])
    datasets = parser.add_subparsers(dest="dataset", metavar="DATASET")

    def add(name: str, text: str, description: str) -> argparse.ArgumentParser:
        return datasets.add_parser(
            name, help=text, description=description, allow_abbrev=False, parents=[common]
        )

    balloon = add(
        "balloon",
        "61 + 13 photos of balloons, for data.root=ROOT",
        "Check ROOT/balloon/{train,val}, or copy the reduced photos of the checkout there. The"
        " balloon recipes find these photos without a copy; data.root=ROOT selects the copy.",
    )
    balloon.add_argument(
        "--full", action="store_true", help="download the original photos instead (38 MB)"
    )
    names = [part.name for part in PARTS]
    coco = add(
        "coco",
        "COCO 2017, 118,287 + 5,000 photos",
        f"Check ROOT/coco/{{{','.join(names)}}}, and download missing files (20 GB in all)."
        " Interrupted downloads resume.",
    )
    coco.add_argument(
        "--parts",
        nargs="+",
        choices=names,
        default=names,
        help="parts of the dataset (default: all)",
    )
    coco.add_argument(
        "--stuff",
        action="store_true",
        help="also COCO-Stuff's label maps, for SCNet, in ROOT/coco/stuffthingmaps (0.7 GB)",
    )
    names = [one.part for one in IMAGE_SETS]
    voc = add(
        "voc",
        "Pascal VOC 2007 and 2012, 5,011 + 11,540 photos for training, 4,952 for the test",
        "Check ROOT/VOC2007 and ROOT/VOC2012, and download missing image sets (2.9 GB in all)."
        " Interrupted downloads resume.",
    )
    voc.add_argument(
        "--parts", nargs="+", choices=names, default=names, help="image sets (default: all)"
    )
    add(
        "open_images",
        "Open Images V6, 1,743,042 + 41,620 photos; prints what you must download yourself",
        "Check ROOT/OpenImages/{annotations,OpenImages/train,OpenImages/validation}.",
    )
    add(
        "cityscapes",
        "Cityscapes' fine annotations, 2,975 + 500 photos; prints what you must download yourself",
        "Check ROOT/cityscapes/{leftImg8bit,gtFine}/{train,val}.",
    )
    args = parser.parse_args(argv)
    if not args.dataset and "weights" not in args:
        parser.error("name a dataset, or a recipe with --weights CONFIG")
    return args


def run(args: argparse.Namespace) -> None:
    """Prepare the dataset or the weights, and print where they are."""
    if args.dataset == "balloon":
        print(prepare_balloon(args.root, args.full))
    elif args.dataset == "coco":
        parts = [part for part in PARTS if part.name in args.parts]
        for line in prepare_coco(args.root, [*parts, *(STUFF if args.stuff else ())]):
            print(line, flush=True)
    elif args.dataset == "voc":
        for line in prepare_voc(args.root, [one for one in IMAGE_SETS if one.part in args.parts]):
            print(line, flush=True)
    elif args.dataset == "open_images":
        print(check_open_images(args.root))
    elif args.dataset == "cityscapes":
        print(check_cityscapes(args.root))
    if config := vars(args).get("weights"):
        from d2ext.run_dir.logging import setup_logging

        setup_logging()
        from d2ext.checkpoint.weights.initial import local_weights
        from d2ext.config.load import load_config
        from d2ext.config.options import TrainOptions

        source = TrainOptions.from_config(load_config(find_config(config)).train).init_checkpoint
        if not source:
            print(f"{config} has no initial weights (train.init_checkpoint)")
            return
        path = local_weights(source)
        size = os.path.getsize(path.partition("?")[0])
        print(f"{source} is at {path} ({size / 1e6:.1f} MB)")
