"""Messages: what an event becomes when it is published, and how it is read back.

What is stored is JSON; reading it back gives an equal event or an `UndecodableMessage` that says
why.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from .encoding import encode, key_text
from .events import Contract, Event, is_version
from .exceptions import InvalidEvent, UndecodableMessage

VERSION_HEADER = "version"
STREAM_HEADER = "stream_version"
RESERVED_HEADERS = frozenset({STREAM_HEADER, "outbox.erased"})
"""Only the outbox itself writes them."""
ERASED_HEADERS = '{"outbox.erased": true}'
"""The headers of a message that was erased, as PostgreSQL writes them."""
_VERSION_MARK = f'"{VERSION_HEADER}"'


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message as a handler sees it."""

    position: int
    """Its number in the log, rising over all channels."""
    channel: str
    key: str | None
    """The ordering key, or None."""
    type: str
    attempt: int
    """1 at the first try, one more after each recorded failure."""
    replayed: bool
    """Whether the group's cursor has been past this position before."""
    group: str
    """The consumer group that handles it."""
    raw_payload: str
    """The payload as JSON text."""
    raw_headers: str
    """The headers as JSON text."""
    raw_created_at: str
    """The time of publication as PostgreSQL writes it."""

    @property
    def payload(self) -> Any:
        """The payload as plain Python values."""
        return msgspec.json.decode(self.raw_payload)

    @property
    def headers(self) -> dict[str, Any]:
        """The headers of `publish()` and the values of `outbox.context()`."""
        return cast(dict[str, Any], msgspec.json.decode(self.raw_headers))

    @property
    def erased(self) -> bool:
        """Whether `outbox erase` removed the payload and headers; the handler's event is None."""
        return self.raw_headers == ERASED_HEADERS

    @property
    def stream_version(self) -> int | None:
        """Its number in its stream, from 1; None for a message of no stream."""
        return cast("int | None", self.headers.get(STREAM_HEADER))

    @property
    def created_at(self) -> datetime.datetime:
        """When the message was published, by the database's clock."""
        return datetime.datetime.fromisoformat(self.raw_created_at)

    @property
    def idempotency_key(self) -> str:
        """An id by which other systems drop duplicates: retries, redrives and replays keep it."""
        return f"{self.group}:{self.position}"


class Draft(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message that has no position yet; the fields are columns of the log."""

    channel: str
    type: str
    payload: Any
    key: str | None = None
    headers: Mapping[str, Any] | None = None


def draft_of(event: Event, headers: Mapping[str, Any] | None) -> Draft:
    """Return the message that `event` becomes.

    Raises InvalidEvent for an object without a channel, InvalidKey for a bad key.
    """
    contract = event.__contract__ if isinstance(event, Event) else None
    if contract is None:
        if isinstance(event, type):
            raise InvalidEvent(
                f"The class {event.__name__} is not an event with a channel: publish an instance "
                f"of it, {event.__name__}(…).",
                event=event,
            )
        raise InvalidEvent(event=event)
    if contract.version != 1:
        headers = {**(headers or {}), VERSION_HEADER: contract.version}
    key = None if contract.key is None else key_text(contract.key(event))
    return Draft(contract.channel, contract.type, event, key, headers)


def reader(event_type: type[Any]) -> Callable[[Message], Any]:
    """Return a function that does what `decode` does, in fewer steps for the usual message."""
    contract: Contract | None = getattr(event_type, "__contract__", None)
    if contract is None or contract.version != 1:
        return functools.partial(decode, event_type=event_type)

    def read(message: Message) -> Any:
        if _VERSION_MARK not in message.raw_headers:
            try:
                return contract.decoder.decode(message.raw_payload)
            except Exception:  # it fails again in decode(), which says why
                pass
        return decode(message, event_type)

    return read


def decode(message: Message, event_type: type[Any]) -> Any:
    """Return the event of a stored message; `event_type`: an Event class, or a `Change[…]`.

    None for a message that was erased.

    Raises UndecodableMessage when the payload does not fit `event_type` any more, or has a
    newer version than the class knows.
    """
    contract: Contract | None = getattr(event_type, "__contract__", None)
    try:
        if contract is None:
            return event_type.from_message(message)
        if contract.version != 1 or _VERSION_MARK in message.raw_headers:
            return _decode_version(message, event_type, contract)
        return contract.decoder.decode(message.raw_payload)
    except (msgspec.MsgspecError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        if message.erased:
            return None
        raise UndecodableMessage(
            position=message.position,
            type=message.type,
            channel=message.channel,
            event=event_type.__qualname__,
            reason=str(error),
            is_newer=isinstance(error, _NewerVersion),
        ) from error


class _NewerVersion(ValueError):
    """The payload was published by a newer release."""


def _decode_version(message: Message, event_type: type[Event], contract: Contract) -> Event:
    version = message.headers.get(VERSION_HEADER, 1)
    if not is_version(version):
        raise ValueError(f"the header {VERSION_HEADER} is {version!r}, no whole number from 1 on")
    if version > contract.version:
        raise _NewerVersion(f"version {version} is newer than the known version {contract.version}")
    if version == contract.version:
        return cast(Event, contract.decoder.decode(message.raw_payload))
    payload = event_type.upgrade(message.payload, version)
    return cast(Event, contract.decoder.decode(encode(payload, "the upgraded payload")))
