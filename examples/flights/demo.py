#!/usr/bin/env python
"""Fly January 2013: publishers, workers, a crash and a replay side by side, every result checked.

Uses the server of DATABASE_URL, or starts one that leaves no trace; either way in a database of
its own, dropped at the end. Exits with 1 if anything was lost, doubled, out of order or wrong.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import django
from django.db.utils import ConnectionHandler

from flights.expected import expect
from flights.timeline import CSV
from outbox import embedded
from screen import Screen


def main() -> int:
    options = arguments()
    expected = expect(CSV, options.flights)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Screen(len(expected.board)) as screen, server() as (url, where), database(url):
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
    return parser.parse_args()


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too small: use 1 or more")
    return number


@contextmanager
def server() -> Iterator[tuple[str, str]]:
    """The URL of a server, and in words where it comes from."""
    if url := os.environ.get("DATABASE_URL"):
        yield url, "the server of DATABASE_URL"
    else:
        with embedded.Server() as throw_away:
            yield throw_away.url, "a throw-away server"


@contextmanager
def database(url: str) -> Iterator[None]:
    """Make a database on the server and let Django use it, here and in every child process."""
    name = f"flights_demo_{os.getpid()}"
    os.environ["DATABASE_URL"] = urlsplit(url)._replace(path=f"/{name}").geturl()
    os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
    django.setup()
    connection = ConnectionHandler({"default": embedded.database_from_url(url)})["default"]
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
