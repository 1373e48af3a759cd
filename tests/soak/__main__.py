"""Run the rack: `python -m tests.soak [--minutes M] [--seed S]`. Exit code 0: nothing was found."""

from __future__ import annotations

import argparse
import random
import signal
import sys

from tests.soak.rack import run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", default="", help="by default a new one, which is printed")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # its processes too
    sys.exit(run(options.minutes, options.seed or str(random.randrange(10**6))))
