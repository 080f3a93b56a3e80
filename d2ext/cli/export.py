"""Export a trained model as an ONNX file, with a program that runs it, or as an HTML page.

d2ext export work_dirs/mine
d2ext export work_dirs/mine --weights last --half --output model.onnx
d2ext export work_dirs/mine --html page.html
d2ext export mine.py --weights model.pth --images photos/

Supports Faster, Mask and Cascade R-CNN with an FPN, and RetinaNet; needs the extra `export`:
pip install 'd2ext[export]'. After writing the file, onnxruntime runs it on the validation set, and
AP and the largest differences to the model in torch are printed. If they exceed the tolerances, the
file is named *.unverified, and the exit status is 1.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2ext.cli.arguments import add_config, make_parser, take_config
from d2ext.run_dir.logging import setup_logging


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = make_parser("export", __doc__, "RUN [flags] [key=value ...]")
    add_config(parser)
    add = parser.add_argument
    add("words", nargs="*", metavar="key=value", help="config overrides")
    add("--weights", metavar="best|last|FILE", help="(best if there is one, else last)")
    default = "export/model.onnx in the run directory, or model_float16.onnx"
    add("--output", type=Path, metavar="FILE", help=f"file to write ({default})")
    half = "store the weights at half precision: half the size, slightly different results"
    add("--half", action="store_true", help=half)
    page = "also write an HTML page that runs the model, stored at half precision, in a browser"
    add("--html", type=Path, metavar="FILE", help=page)
    photos = "verify with these photos, or folders of photos, instead of the validation set"
    add("--images", nargs="+", type=Path, default=[], metavar="PHOTOS", help=photos)
    args = parser.parse_intermixed_args(argv)
    args.options = take_config(parser, args, args.words, "RUN")
    if args.output and args.output.suffix != ".onnx":
        parser.error(f"--output {args.output} does not end with .onnx")
    return args


def run(args: argparse.Namespace) -> int:
    """Export; return the exit status."""
    setup_logging()

    from d2ext.export.export import export_model

    passed = export_model(
        args.config_file,
        args.weights,
        args.options,
        output=args.output,
        half=args.half,
        page=args.html,
        images=args.images,
    )
    return 0 if passed else 1
