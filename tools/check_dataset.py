#!/usr/bin/env python
"""Find and fix errors in a COCO file: `d2ext check` in a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.__main__ import main

if __name__ == "__main__":
    main(["check", *sys.argv[1:]])
