#!/usr/bin/env python
"""Convert annotations to or from COCO: `d2ext convert` in a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.__main__ import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
