"""Check this installation and run one training step to prove that it works.

d2ext doctor

Prints versions, CPU and GPUs, which Detectron2 is installed, which of its compiled operators are
missing, and what does not work without them. If training cannot work, prints the remedy and exits
with status 1.
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
