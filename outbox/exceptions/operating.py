"""Why an operation on groups, segments or sessions is not done."""

from __future__ import annotations

from typing import Any

from .outbox_error import OutboxError


class InvalidSnapshot(OutboxError, ValueError):
    """A snapshot cannot be taken as asked."""


class ScaleUnfinished(OutboxError):
    """Group {group!r} does not have {to} ranges in channel {channel!r} yet: some neighbours have \
not met at one position within {seconds:g} s. All ranges are in order and go on. Run the command \
again while workers run; `manage.py outbox describe {group} --ranges` shows who is behind."""

    group: str
    channel: str
    to: int
    seconds: float


class NotParked(OutboxError, LookupError):
    """Group {group!r} has no parked message {wanted}: `outbox parked {group}` lists them."""

    group: str
    wanted: str


class InvalidReset(OutboxError, ValueError):
    """A reset does not say where to."""


class InvalidTime(OutboxError, ValueError):
    """{time} has no time zone: write it with one, as in 2026-01-31T12:00+00:00."""

    time: str


class InvalidSkip(OutboxError, ValueError):
    """The message cannot be skipped."""


class InvalidPause(OutboxError, ValueError):
    """A pause has to end in the future, at a time with a zone: {until}."""

    until: Any


class LogIsBusy(OutboxError):
    """The log was in use all the time, so that no segment could be attached or removed within \
{seconds:g} s. Try again when these transactions have ended: {holders}"""

    seconds: float
    holders: str


class ReaderCameBack(OutboxError):
    """Group {group!r} went back in channel {channel!r}, to {position}, and may still read it."""

    group: str
    channel: str
    position: int


class ArchiveBroken(OutboxError):
    """The archived file {name!r} cannot be used: {reason}. Nothing of it was removed, restored \
or erased."""

    name: str
    reason: str


class CannotRestore(OutboxError):
    """The archived file {name!r} cannot be restored: {reason}."""

    name: str
    reason: str


class CannotEndSession(OutboxError):
    """The session of server process {pid} was not ended: {cause}."""

    pid: int
    cause: str


class PlanChanged(OutboxError):
    """Nothing was done, since the plan does not hold any more."""

    changes: list[str]
    """A sentence for each difference."""

    def __init__(self, changes: list[str]) -> None:
        doc = (type(self).__doc__ or "").strip()
        super().__init__(f"{doc} {' '.join(changes)}", changes=changes)
