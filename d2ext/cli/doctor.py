"""Print what this installation can train with, and train one step to prove it.

d2ext doctor

Prints versions, CPU and GPUs, which Detectron2 this is, which of its compiled operators are missing
and what does not work without them. Exit status 1 if training cannot work, with the remedy.
"""

import argparse
from collections.abc import Sequence

from d2ext.cli.arguments import make_parser
from d2ext.doctor.report import diagnose


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    return make_parser("doctor", __doc__).parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Print the diagnosis; return 0 if training works, else 1."""
    diagnosis = diagnose()
    print(diagnosis)
    return 1 if diagnosis.problems else 0
