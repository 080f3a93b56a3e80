r"""Evaluate the model of a run or a config, or a COCO results file written by any program.

d2ext evaluate work_dirs/mine
d2ext evaluate mine.py --weights model.pth data.val.json=b.json
d2ext evaluate predictions.json --dataset instances_val.json
d2ext evaluate folds/*/predictions/custom_val.json --dataset a.json
d2ext evaluate predictions.json --dataset instances_val.json --metrics coco voc \
    --per-class --confusion-matrix --pr-curves --errors --out results.json
d2ext evaluate predictions.json --dataset instances_val.json --against others.json

A run or a config is evaluated as with `d2ext train CONFIG --eval-only`, and takes the same flags
and overrides. --weights defaults to best, or last if the run directory has no best model, or
train.init_checkpoint if it has no model at all.

A results file needs no model. Several files, such as those of a cross-validation's folds, are
evaluated together; no image may be in two of them. Tables are printed; --out also writes the
numbers in full precision, {"coco/bbox/AP": 41.3, ...}, with null for undefined numbers, and the
results of --confusion-matrix, --pr-curves and --errors to <its name>_analysis.json beside it. Masks
are evaluated if both files have them.

Results of up to 1,000 images have 95 % intervals; --intervals computes them for more images, and
--resamples 0 turns them off. --against OTHERS.json says how much better or worse the predictions
are than others on the same images, and whether the images suffice to tell.

Exits with status 0, or with 2 if a file is invalid.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2ext.cli import train
from d2ext.cli.arguments import add_interval_flags, make_parser
from d2ext.evaluation.metric_names import METRICS

_USAGE = """CONFIG [flags of train] [key=value ...]
       %(prog)s PREDICTIONS.json ... --dataset JSON [flags]"""


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command, or those of `d2ext train` if a model is evaluated."""
    words = (word for word in argv if not word.startswith("-") and "=" not in word)
    flags = {word.partition("=")[0] for word in argv if word.startswith("--")}
    offline = "--dataset" in flags or next(words, ".json").endswith(".json")
    if offline and "--config-file" not in flags:
        return _results_parser().parse_args(argv)
    args = train.parse(argv, "evaluate")
    args.eval_only = True
    if args.intervals:
        args.options.append("+train.intervals=True")
    if args.resamples is not None:
        args.options.append(f"+train.resamples={args.resamples}")
    return args


def _results_parser() -> argparse.ArgumentParser:
    parser = make_parser("evaluate", __doc__, _USAGE)
    parser.add_argument(
        "predictions",
        type=Path,
        nargs="+",
        metavar="PREDICTIONS.json",
        help="lists of COCO results",
    )
    parser.add_argument(
        "--dataset", type=Path, required=True, metavar="JSON", help="COCO annotations"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["coco"],
        choices=list(METRICS),
        help="metrics to compute (default: coco)",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=["bbox", "segm", "keypoints", "proposals"],
        help="tasks of the metric coco (default: bbox, and segm or keypoints if there are any)",
    )
    parser.add_argument(
        "--max-detections",
        type=_number,
        default=100,
        metavar="N",
        help="detections per image and class that the metric coco counts (default: 100)",
    )
    parser.add_argument("--per-class", action="store_true", help="also print results per class")
    parser.add_argument(
        "--confusion-matrix", action="store_true", help="count which classes are confused"
    )
    parser.add_argument(
        "--pr-curves",
        action="store_true",
        help="compute precision-recall curves, and each class's score threshold with the best F1",
    )
    parser.add_argument(
        "--errors",
        action="store_true",
        help="count errors by cause (TIDE), list best and worst images",
    )
    add_interval_flags(parser)
    parser.add_argument(
        "--against",
        type=Path,
        metavar="OTHERS.json",
        help="compare with these results, image by image",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON")
    parser.add_argument(
        "--backend",
        choices=["auto", "hotcoco", "pycocotools"],
        default="auto",
        help="implementation of the metric coco (default: hotcoco, or pycocotools without it)",
    )
    return parser


def run(args: argparse.Namespace) -> int | None:
    """Evaluate; return the exit status."""
    if "config_file" in args:
        return train.run(args)
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
        intervals=args.intervals or None,
        **({} if args.resamples is None else {"resamples": args.resamples}),
        against=args.against,
    )
