"""python -m benchmarks: run the named benchmarks, or all, on a database of their own."""

from __future__ import annotations

import argparse
import importlib
import os

NAMES = (
    "publish",
    "consume",
    "storage",
    "wakeup",
    "publishers",
    "parking",
    "snapshot",
    "scaling",
    "sizes",
    "monitoring",
    "control_room",
    "pgpubsub",
    "streams",
    "retention",
    "relays",
)
ON_REQUEST = ("peers",)
"""Those that install other libraries."""


def main() -> None:
    """Run the benchmarks that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the outbox, each figure beside its floor from the same run. Uses the "
        "server of DATABASE_URL, where it makes and drops the database outbox_benchmarks, or a "
        "temporary server of its own.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES + ON_REQUEST)}"
    )
    parser.add_argument("--quick", action="store_true", help="fewer messages: a rough look")
    options = parser.parse_args()
    if unknown := set(options.names) - {*NAMES, *ON_REQUEST}:
        there_are = ", ".join(NAMES + ON_REQUEST)
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {there_are}")
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    harness = importlib.import_module("benchmarks.harness")
    with harness.database():
        for name in options.names or NAMES:
            importlib.import_module(f"benchmarks.{name}").run(quick=options.quick)


if __name__ == "__main__":
    main()
