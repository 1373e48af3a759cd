"""What the verbs have in common."""

from __future__ import annotations

import argparse
import datetime
from typing import Any, ClassVar

from django.core.management.base import CommandError
from django.utils.dateparse import parse_duration

from .printer import Printer

PAST_THRESHOLD = 3
"""Exit code when a threshold is passed, an audit fails or the doctor finds a fault."""


class Verb:
    """One verb: its arguments, and what it does. The docstring is its help."""

    name: ClassVar[str]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments beyond --json and --database."""

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Do it; raises CommandError with the exit code when that is not 0."""
        raise NotImplementedError


def past_threshold(message: str) -> CommandError:
    """Return the error that ends the command with the exit code of a failed check."""
    return CommandError(message, returncode=PAST_THRESHOLD)


def time_with_zone(text: str) -> datetime.datetime:
    """Return the time that an argument names; it must have a zone."""
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
    """Return the duration that an argument names, as in ISO 8601 or as days and hh:mm:ss."""
    parsed = parse_duration(text)
    if parsed is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration like PT30M or P1DT2H")
    return parsed


def positive(text: str) -> int:
    """Return a whole number above 0."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number
