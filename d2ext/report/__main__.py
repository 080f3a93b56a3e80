"""python -m d2ext.report RUN_DIR: writes RUN_DIR/report.html anew and prints its path."""

import argparse

from d2ext.errors import run_tool
from d2ext.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m d2ext.report", description=__doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a folder that a training run wrote")
    print(write_report(parser.parse_args().run_dir))


if __name__ == "__main__":
    run_tool(main)
