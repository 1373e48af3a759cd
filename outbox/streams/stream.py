"""A stream: read the messages of one key of a stream channel, in order of their versions."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterator
from typing import Any

import msgspec
from django.db import connections

from .. import events
from ..conf import log_alias
from ..encoding import Key, key_text
from ..exceptions import InvalidStream
from ..messages import VERSION_HEADER, Message, decode
from ..sql import run_statement, scalar

CHUNK = 1000
"""Messages read at a time."""
LATEST = 2**63 - 1


class Stream:
    """The messages of one key of a stream channel. `using`: the alias of the log's database."""

    def __init__(self, channel: str, key: str, using: str) -> None:
        self.channel = channel
        self.key = key
        self.using = using

    def __repr__(self) -> str:
        return f"<Stream {self.key!r} of {self.channel!r}>"

    @property
    def version(self) -> int:
        """The version of its last message, read now; 0 when it has none."""
        found = scalar("stream_version", self.using, channel=self.channel, key=self.key)
        return int(found or 0)

    def version_at(self, time: datetime.datetime) -> int:
        """Return the version at a time, 0 before its first message; the time must have a zone."""
        if time.tzinfo is None:
            raise InvalidStream(f"{time.isoformat()} has no time zone: write it with one.")
        return int(
            scalar("stream_version_at", self.using, channel=self.channel, key=self.key, time=time)
        )

    def read(self, after: int = 0, until: int | None = None) -> Iterator[tuple[Any, Message]]:
        """Give (event, message) in order of the versions above `after`, up to `until`.

        `until`: None for the last one. The event of a type that no class has is the plain payload.
        Raises UndecodableMessage.
        """
        for position, key, type_name, payload, headers, created_at, _ in self._rows(
            "read_stream", after, until
        ):
            message = Message(
                position, self.channel, key, type_name, 1, False, "", payload, headers, created_at
            )
            yield self._event(message), message

    def read_events(self, until: int | None = None) -> Iterator[tuple[Any, int]]:
        """Give (event, version), as `read` does, without the messages: for a fold."""
        for position, type_name, payload, headers, version in self._rows("fold_stream", 0, until):
            event_type = events.event_type(self.channel, type_name)
            contract = event_type.__contract__ if event_type is not None else None
            if contract is not None and headers == _headers_of(contract.version):
                try:
                    yield contract.decoder.decode(payload), version
                    continue
                except msgspec.MsgspecError:
                    pass  # decoded once more below, for the error that names the message
            message = Message(
                position,
                self.channel,
                self.key,
                type_name,
                1,
                False,
                "",
                payload,
                headers or "{}",
                "",
            )
            yield self._event(message), version

    def _rows(self, query: str, after: int, until: int | None) -> Iterator[tuple[Any, ...]]:
        """Give the rows of a statement in chunks; the last column is the version."""
        last = LATEST if until is None else until
        while after < last:
            parameters: dict[str, Any] = {
                "channel": self.channel,
                "key": self.key,
                "after": after,
                "until": last,
                "most": CHUNK,
            }
            with connections[self.using].cursor() as cursor:
                run_statement(cursor, query, parameters)
                rows: list[tuple[Any, ...]] = cursor.fetchall()
            yield from rows
            if len(rows) < CHUNK:
                return
            after = rows[-1][-1]

    def _event(self, message: Message) -> Any:
        event_type = events.event_type(self.channel, message.type)
        return message.payload if event_type is None else decode(message, event_type)


@functools.cache
def _headers_of(version: int) -> str | None:
    """Return the headers of a message of an event class's version without others; None: none."""
    return None if version == 1 else f'{{"{VERSION_HEADER}": {version}}}'


def stream(channel: str, key: Key, *, using: str | None = None) -> Stream:
    """Return the stream of a key in a channel; it need not have a message.

    `using`: the database alias; by default the one that the router writes messages to. Raises
    InvalidStream for a channel that is none of streams, InvalidChannel, UnknownDatabase.
    """
    if not events.is_stream_channel(events.valid_channel(channel)):
        raise InvalidStream(
            f"Channel {channel!r} is none of streams: declare its events with stream=True."
        )
    text = key_text(key)
    if text is None:
        raise InvalidStream(f"A stream of channel {channel!r} has a key; None is none.")
    return Stream(channel, text, log_alias(using))
