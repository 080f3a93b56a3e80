"""Write a run's report, or compare several runs on one page.

d2ext report work_dirs/mine
d2ext report work_dirs/mine work_dirs/other --output comparison.html

Several runs are compared with the first one on the same draws of the test images: by how much each
is better or worse, and whether the images suffice to tell. Runs of one config with different seeds
count as one, with their mean.

Reads only the run directories, even while the runs train; needs neither the data nor a model.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from d2ext.cli.arguments import make_parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = make_parser("report", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run directories")
    default = "report.html in the run directory; for several runs, work_dirs/comparison.html"
    add("--output", type=Path, metavar="FILE", help=f"page to write ({default})")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Write the page; return the exit status."""
    from d2ext.report import write_comparison, write_report

    if len(args.runs) == 1:
        print(write_report(args.runs[0], args.output))
    else:
        page = args.output or Path("work_dirs/comparison.html")
        print(write_comparison(args.runs, page, show=print))
    return 0
