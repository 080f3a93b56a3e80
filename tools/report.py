#!/usr/bin/env python
"""Writes the report of a run anew, or compares several runs on one page.

python tools/report.py work_dirs/mine
python tools/report.py work_dirs/mine work_dirs/other --output comparison.html

It reads what the runs have written, while they train, too; neither data nor a model are needed.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.errors import run_tool


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folders that trainings wrote")
    default = "report.html in the run's folder; of several runs work_dirs/comparison.html"
    add("--output", type=Path, metavar="FILE", help=f"the page ({default})")
    return parser


def main() -> int:
    """Writes the page that the command line asks for; returns the exit status."""
    args = _parser().parse_args()

    from d2ext.report import write_comparison, write_report

    if len(args.runs) == 1:
        print(write_report(args.runs[0], args.output))
    else:
        print(write_comparison(args.runs, args.output or Path("work_dirs/comparison.html")))
    return 0


if __name__ == "__main__":
    run_tool(main)
