"""The contract of a sink: what a destination must offer, and what it gets.

A sink sends the records of one range in order and confirms them. It may be used by one thread at a
time, connects at its first use, and connects again after `close`.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from ..consuming.cursors import SLOTS
from ..exceptions import DestinationUnavailable, MissingExtra, RecordRefused

logger = logging.getLogger("outbox.relays")

CURSOR_ATTRIBUTE = "outboxcursor"
SEQUENCE_ATTRIBUTE = "sequence"
SEQUENCE_DIGITS = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """The range of a relay that records come from."""

    relay: str
    channel: str
    slot_from: int
    slot_to: int
    generation: int
    """Rises when the range is reset or reshaped: what was sent before says nothing about it."""

    def __str__(self) -> str:
        """Return the text by which a sink knows its own records again."""
        slots = f"{self.slot_from}-{self.slot_to}"
        return f"{self.relay}/{self.channel}/{slots}/{self.generation}"

    def replaces(self, other: Origin) -> bool:
        """Return whether another origin is an earlier one of the same channel."""
        return self.channel == other.channel and self.generation > other.generation

    @property
    def is_whole(self) -> bool:
        """Whether the range is the whole channel, so that its positions only rise."""
        return self.slot_to - self.slot_from == SLOTS - 1


class Record(msgspec.Struct, frozen=True):
    """One message as it goes to a destination."""

    position: int
    """The message's position in the log; 0 for a test message."""
    id: str
    """The same at every try of the message, another one after a reset: for deduplication."""
    to: str
    """The topic, stream, subject, queue or address."""
    key: str | None
    """The ordering key at the destination."""
    data: bytes
    """The payload as JSON text."""
    attributes: Mapping[str, str]
    """CloudEvents 1.0 attributes, without prefix; `sequence` is the position, zero-padded."""
    headers: Mapping[str, str]
    """Further headers that the routing function added."""
    replayed: bool = False
    """Whether the relay's cursor has been past this message before."""


@runtime_checkable
class Sink(Protocol):
    """What a destination must offer; tested by `outbox.testing.sink_contract`."""

    to: str
    """Where records go that no routing function sends elsewhere: a topic, a stream, a subject.

    `{channel}` and `{type}` stand for those of the message."""
    most_together: int | None
    """The most records for one call of `send`; None for no limit."""

    def position(self, origin: Origin, to: str | None) -> int | None:
        """Return where the destination stands: the position of its last record of this origin.

        It has everything of the origin up to there, and nothing behind it. None: it does not know.
        `to`: where the records of the origin go; None when they go to several places.
        Raises DestinationUnavailable.
        """

    def send(self, origin: Origin, records: Sequence[Record]) -> None:
        """Send records in order; return when the destination has confirmed all of them.

        Raises RecordRefused with the number of records that are confirmed, for the one behind them
        that will never be taken, and DestinationUnavailable for anything else. Nothing behind a
        record that is not confirmed and has its key may be taken.
        """

    def close(self) -> None:
        """Give up the connection; the next call makes a new one. Never raises."""


class HeaderNames(dict[str, str]):
    """The header of each CloudEvents attribute: a prefix before its name, or as given."""

    def __init__(self, prefix: str, **others: str) -> None:
        super().__init__(others)
        self._prefix = prefix

    def __missing__(self, attribute: str) -> str:
        return self.setdefault(attribute, self._prefix + attribute)


def refused(sent: int, reason: str) -> RecordRefused:
    """Return the error for a record that its destination never takes."""
    return RecordRefused(reason=reason, sent=sent)


def unavailable(
    error: BaseException | str, sent: int = 0, seconds: float | None = None
) -> DestinationUnavailable:
    """Return the error for a destination that does not work now."""
    is_error = isinstance(error, BaseException)
    reason = f"{type(error).__name__}: {error}".strip() if is_error else str(error)
    return DestinationUnavailable(reason=reason, sent=sent, seconds=seconds)


def too_large(sent: int, size: int, limit: int, of: str) -> RecordRefused:
    """Return the error for a record above a limit; `of`: whose limit, as in "max_payload"."""
    return refused(sent, f"it has {size} bytes, and {of} is {limit} bytes")


def library(module: str, extra: str) -> Any:
    """Import a client library; raises MissingExtra, which names the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(extra=extra, module=error.name or module) from error


def position_in(attributes: Mapping[str, str], origin: Origin) -> int | None:
    """Return the position in the attributes of a stored record, if it is of this origin."""
    if attributes.get(CURSOR_ATTRIBUTE) != str(origin):
        return None
    return int(attributes[SEQUENCE_ATTRIBUTE])
