#!/usr/bin/env python
"""Show a config's images as training sees them: `d2ext browse` in a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from d2ext.__main__ import main

if __name__ == "__main__":
    main(["browse", *sys.argv[1:]])
