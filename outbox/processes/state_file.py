"""The state file of a worker without a supervisor: its successor reads which message ended it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from django.core.management.base import CommandError
from django.db import DatabaseError

from ..consuming import crashes, in_flight
from ..consuming.in_flight import InFlight
from .exit_codes import ExitCode

logger = logging.getLogger("outbox.worker")


def recover_state_file(path: Path, using: str) -> InFlight:
    """Record in a file which message is handled; charge the message that ended its last user."""
    import fcntl

    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise CommandError(
            f"{path} is in use by another process: give each its own --state-file",
            returncode=ExitCode.USAGE,
        ) from error
    record = in_flight.record_to(fd)
    last = record.read()
    if last.position:
        reason = "the process ended without recording why"
        try:
            crashes.record_dead_process(
                last.cursor, last.position, reason, pid=last.pid, using=using
            )
        except DatabaseError:
            logger.exception(
                "the failed attempt of the message at position %d could not be recorded",
                last.position,
            )
    return record
