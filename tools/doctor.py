#!/usr/bin/env python
"""Check this installation: `d2ext doctor` in a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.__main__ import main

if __name__ == "__main__":
    main(["doctor", *sys.argv[1:]])
