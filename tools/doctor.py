"""Says what this installation can train with, and trains one step to prove it.

    python tools/doctor.py

Prints versions, CPU and GPUs, which Detectron2 this is, which of its compiled operators are missing
and what does not work without them. Exit status 1 if training cannot work, with the remedy.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from d2ext.doctor.report import diagnose
from d2ext.errors import run_tool


def main() -> int:
    """Prints the diagnosis; 0 if training works, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    diagnosis = diagnose()
    print(diagnosis)
    return 1 if diagnosis.problems else 0


if __name__ == "__main__":
    run_tool(main)
