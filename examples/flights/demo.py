#!/usr/bin/env python
"""Fly January 2013: publishers, workers, a crash and a replay side by side, every result checked.

Uses the server of DATABASE_URL, or starts one that leaves no trace; either way in a database of
its own, dropped at the end. Exits with 1 if anything was lost, doubled, out of order or wrong, with 2
if what --relay needs is missing.
"""

import argparse
import signal
import sys
from pathlib import Path

import jetstream
from flights.expected import expect
from flights.timeline import CSV
from screen import Screen

sys.path.append(str(Path(__file__).parent.parent))
from demo_database import demo_database


def main() -> int:
    options = arguments()
    if options.relay and (lacks := jetstream.missing()):
        print(lacks, file=sys.stderr)
        return 2
    expected = expect(CSV, options.flights)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Screen(len(expected.board)) as screen, demo_database("flights") as where:
            from story import Story  # it needs the settings that were made just now

            screen.say(f"a database on {where}")
            return Story(options, expected, screen).play()
    except KeyboardInterrupt:
        print("Interrupted: all processes have ended, the database is gone.", file=sys.stderr)
        return 130


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fly January 2013 and check every result.")
    for name, default, meaning in (
        ("flights", None, "only the first so many flights"),
        ("publishers", 2, "publishing processes"),
        ("workers", 3, "consuming processes"),
        ("batch-size", 100, "most messages in a batch"),
        ("rate", 400, "transactions per second before the rush"),
    ):
        parser.add_argument(f"--{name}", type=positive, default=default, help=meaning)
    parser.add_argument("--relay", choices=["nats"], help="in the end, relay the flights there")
    return parser.parse_args()


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too small: use 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
