#!/usr/bin/env python
"""Print a config or the meaning of its keys: `d2ext print-config` in a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.__main__ import main

if __name__ == "__main__":
    main(["print-config", *sys.argv[1:]])
