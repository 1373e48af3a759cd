#!/usr/bin/env python
"""Run an example: `bank`, or the flights when no example is named; further arguments go to it."""

import runpy
import sys
from pathlib import Path

EXAMPLES = ("flights", "bank")

if __name__ == "__main__":
    name = sys.argv.pop(1) if sys.argv[1:2] and sys.argv[1] in EXAMPLES else "flights"
    folder = Path(__file__).parent / name
    sys.argv[0] = str(folder / "demo.py")
    sys.path[0] = str(folder)
    runpy.run_path(sys.argv[0], run_name="__main__")
