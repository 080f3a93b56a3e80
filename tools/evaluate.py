#!/usr/bin/env python
r"""Evaluates detections in a COCO results file, from whatever program, without a model.

python tools/evaluate.py predictions.json --dataset instances_val.json
python tools/evaluate.py predictions.json --dataset instances_val.json --metrics coco voc \
    --per-class --confusion-matrix --pr-curves --errors --out results.json

Prints tables; --out writes the numbers in full precision, {"coco/bbox/AP": 41.3, ...}, null where
a number is undefined. What --confusion-matrix, --pr-curves and --errors find goes beside it, to
<its name>_analysis.json. Masks are evaluated where both files have them.

Exit status: 0, or 2 if a file is not what it should be.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.errors import run_tool
from d2ext.evaluation.metric_names import METRICS


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "predictions", type=Path, metavar="PREDICTIONS.json", help="COCO results: a list"
    )
    parser.add_argument(
        "--dataset", type=Path, required=True, metavar="JSON", help="the COCO annotations"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["coco"],
        choices=list(METRICS),
        help="default: coco",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=["bbox", "segm", "proposals"],
        help="what coco compares (default: bbox, and segm where there are masks)",
    )
    parser.add_argument(
        "--max-detections",
        type=_number,
        default=100,
        metavar="N",
        help="the most detections of an image and class that coco takes (default: 100)",
    )
    parser.add_argument("--per-class", action="store_true", help="also the numbers of each class")
    parser.add_argument(
        "--confusion-matrix", action="store_true", help="which class is taken for which"
    )
    parser.add_argument(
        "--pr-curves",
        action="store_true",
        help="precision over recall, and each class's score threshold with the highest F1",
    )
    parser.add_argument(
        "--errors", action="store_true", help="errors by cause (TIDE), best and worst images"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON")
    parser.add_argument(
        "--backend",
        choices=["auto", "hotcoco", "pycocotools"],
        default="auto",
        help="what matches for coco (default: hotcoco, or pycocotools where it is absent)",
    )
    return parser


def main() -> None:
    """Evaluates what the command line names."""
    args = _parser().parse_args()
    from d2ext.evaluation.offline import evaluate_files

    parts = {name: getattr(args, name) for name in ("confusion_matrix", "pr_curves", "errors")}
    evaluate_files(
        args.predictions,
        args.dataset,
        args.metrics,
        per_class=args.per_class,
        parts=parts,
        out=args.out,
        backend=args.backend,
        tasks=args.tasks,
        max_detections=args.max_detections,
    )


if __name__ == "__main__":
    run_tool(main)
