#!/usr/bin/env python
"""Evaluate a run or a file of detections: `d2ext evaluate` in a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.__main__ import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
