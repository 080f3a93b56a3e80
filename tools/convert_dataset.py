#!/usr/bin/env python
"""Converts annotations to COCO, or from COCO to another format.

python tools/convert_dataset.py via via_region_data.json --images photos --output coco.json
python tools/convert_dataset.py via via.csv --images photos --class-attribute kind --output a.json
python tools/convert_dataset.py labelme annotations --images photos --output coco.json
python tools/convert_dataset.py yolo data.yaml --images images/train --output coco.json
python tools/convert_dataset.py yolo data.yaml --split val --images images --output coco.json
python tools/convert_dataset.py voc Annotations --images JPEGImages --output coco.json
python tools/convert_dataset.py cvat annotations.xml --images images --output coco.json
python tools/convert_dataset.py createml annotations.json --images photos --output coco.json
python tools/convert_dataset.py open_images boxes.csv --images photos --output coco.json
python tools/convert_dataset.py coco coco.json --to yolo_seg --output labels
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.data.convert.from_coco import WRITERS, convert_from_coco
from d2ext.data.convert.to_coco import FORMATS, convert_to_coco
from d2ext.errors import run_tool

_INPUTS = {
    "createml": "CreateML's boxes: a JSON",
    "cvat": "CVAT for images 1.1: annotations.xml, or a folder of several",
    "via": "VGG Image Annotator 1 and 2: JSON, CSV or project",
    "labelme": "LabelMe: the folder of the JSON files",
    "open_images": "Open Images' boxes: a CSV; *class-descriptions*.csv beside it names classes",
    "voc": "Pascal VOC: the folder of the XML files",
    "yolo": "YOLO, detection and segmentation: data.yaml, or the folder of the labels",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        sub = formats.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("input", type=Path, metavar="INPUT", help="the annotations")
        sub.add_argument("--output", type=Path, required=True, help="what to write")
        return sub

    for name in FORMATS:
        sub = add(name, _INPUTS[name])
        sub.add_argument("--images", type=Path, required=True, metavar="DIR", help="their folder")
        sub.add_argument(
            "--classes", nargs="+", metavar="NAME", help="class names (default: those of the input)"
        )
        if name == "via":
            sub.add_argument(
                "--class-attribute",
                metavar="NAME",
                help="the region attribute that holds the class (default: found in the input)",
            )
        if name == "yolo":
            sub.add_argument(
                "--split",
                metavar="NAME",
                help="read only the images of this split of data.yaml (train, val, test): its"
                " folders or list files, such as train.txt (default: all images in --images)",
            )
    back = add("coco", "COCO: the JSON; --to names the format to write")
    back.add_argument("--to", choices=sorted(WRITERS), required=True, help="the format to write")
    back.add_argument(
        "--images", type=Path, metavar="DIR", help="their folder, for LabelMe's files"
    )
    return parser


def main() -> None:
    """Converts what the command line names, and says what was written."""
    args = _parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if args.format == "coco":
        print(convert_from_coco(args.input, args.to, args.output, args.images))
    else:
        made = convert_to_coco(
            args.format,
            args.input,
            args.images,
            args.output,
            args.classes,
            attribute=getattr(args, "class_attribute", None),
            split=getattr(args, "split", None),
        )
        print(made)


if __name__ == "__main__":
    run_tool(main)
