"""The base class of the verbs, and the arguments that several of them take."""

from __future__ import annotations

import argparse
import datetime
from typing import Any, ClassVar

from django.core.management.base import CommandError
from django.utils.dateparse import parse_duration

from ...conf import is_number, log_alias
from ...processes.exit_codes import ExitCode
from .printer import Printer

LARGEST = 2**62
"""The largest whole number that an argument takes."""


class Verb:
    """One verb: its arguments, and what it does. The docstring is its help."""

    name: ClassVar[str]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments beyond --json and --database."""

    def database(self, options: dict[str, Any]) -> str:
        """Return the alias of the database: --database, else where the router writes messages."""
        return log_alias(options["database"])

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Do it; raises CommandError with the exit code when that is not 0."""
        raise NotImplementedError


def failed_check(message: str) -> CommandError:
    """Return the error that ends the command with the exit code of a failed check."""
    return CommandError(message, returncode=ExitCode.FAILED_CHECK)


def add_scope(parser: argparse.ArgumentParser, *, several: bool = True) -> None:
    """Declare GROUP, --channel and --reason; `several`: whether --channel may be repeated."""
    action = "append" if several else "store"
    parser.add_argument("group", metavar="GROUP")
    parser.add_argument("--channel", action=action, metavar="C", help="only this channel")
    parser.add_argument("--reason", default="", help="stored in the action log")


def time_with_zone(text: str) -> datetime.datetime:
    """Parse a time; it must have a zone."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time like 2026-01-31T12:00:00+00:00"
        ) from None
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone; write {text}+00:00 for UTC")
    return time


def duration(text: str) -> datetime.timedelta:
    """Parse a duration: ISO 8601, or days and hh:mm:ss."""
    parsed = parse_duration(text)
    if parsed is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration like PT30M or P1DT2H")
    return parsed


def positive(text: str) -> int:
    """Return a whole number above 0."""
    return whole(text, least=1)


def whole(text: str, least: int = 0) -> int:
    """Return a whole number from 0 on that PostgreSQL can count with."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not least <= number <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least} to {LARGEST}")
    return number


def seconds(text: str) -> float:
    """Return a finite number of seconds from 0 on."""
    if not is_number(number := float(text), 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0 on")
    return number
