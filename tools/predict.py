#!/usr/bin/env python
"""Detect objects in images and videos: `d2ext predict` in a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.__main__ import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
