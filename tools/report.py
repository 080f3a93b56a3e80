#!/usr/bin/env python
"""Write a run's report, or compare runs: `d2ext report` in a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.__main__ import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
