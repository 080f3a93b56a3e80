#!/usr/bin/env python
"""Set up a dataset, or download weights: `d2ext prepare` in a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.__main__ import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
