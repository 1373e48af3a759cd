"""RabbitMQ streams: the publishing id of a record is its position, so the server knows doubles.

Each range publishes under a name of its own, which changes with a reset. The server remembers the
highest publishing id of each name in the stream: that is the resume point, and a record at or
below it is confirmed and not stored again, also when a second relay sends it. One frame is in
flight: if a later one were stored and an earlier one not, the earlier one would be taken for a
double.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any
from urllib.parse import unquote, urlsplit

from ..exceptions import InvalidGroup
from . import amqp, event_loop
from .sink import Origin, Record, library, too_large, unavailable

FRAME_BYTES = 1_048_576
"""Bytes of a frame, and so of a message; RabbitMQ's default."""
NAME_BYTES = 255
"""The longest name of a publisher."""
RECORD_BYTES = 32
"""What a frame needs for each record, and once for itself."""
NAMES = amqp.Names("cloudEvents_")


class RabbitStreams:
    """Publishes to streams at `url`, such as `rabbitmq-stream://guest:guest@localhost:5552`.

    `stream`: the name; `{channel}` and `{type}` stand for the message's. The stream exists.
    `frame_max`: bytes of a frame, as the server is configured. `timeout`: seconds to wait for
    confirmation. Further options go to `rstream.Producer`, such as `ssl_context`.
    Needs the extra `rabbitmq`; raises MissingExtra, InvalidGroup for a bad URL.
    """

    most_together: int | None = None

    def __init__(
        self,
        url: str,
        *,
        stream: str = "{channel}",
        frame_max: int = FRAME_BYTES,
        timeout: float = 10.0,
        **options: Any,
    ) -> None:
        self._rstream = library("rstream", "rabbitmq")
        self._recovery = library("rstream.recovery", "rabbitmq")
        parts = urlsplit(url)
        if parts.scheme != "rabbitmq-stream" or not parts.hostname:
            raise InvalidGroup(
                f"RabbitStreams: the URL at {parts.hostname!r} is not like "
                "rabbitmq-stream://user:password@localhost:5552."
            )
        self.to, self.frame_max, self.timeout = stream, frame_max, timeout
        self._at = f"{parts.hostname}:{parts.port or 5552}"
        self._options = {
            "host": parts.hostname,
            "port": parts.port or 5552,
            "username": unquote(parts.username or "guest"),
            "password": unquote(parts.password or "guest"),
            "vhost": unquote(parts.path[1:]) or "/",
            "frame_max": frame_max,
            "max_retries": 1,
            **options,
        }
        self._producers: dict[str | None, Any] = {}

    def __repr__(self) -> str:
        return f"RabbitStreams({self._at}, stream={self.to!r})"

    def position(self, origin: Origin, to: str | None) -> int | None:
        """Return the highest publishing id of this origin in the stream."""
        if to is None:
            return None
        found: int | None = event_loop.run_for_sink(self._position(origin, to), self.timeout)
        return found

    def send(self, origin: Origin, records: Sequence[Record]) -> None:
        """Publish the records, a frame after the other, each when the one before is confirmed."""
        event_loop.run_for_sink(self._send(origin, records), self.timeout)

    def close(self) -> None:
        """Give up the connections."""
        producers = list(self._producers.values())
        self._producers.clear()
        for producer in producers:
            with contextlib.suppress(Exception):
                event_loop.run(producer.close(), self.timeout)

    async def _producer(self, name: str | None) -> Any:
        """Return the connection that publishes under a name; None: without deduplication."""
        if name not in self._producers:
            recovery = self._recovery.BackOffRecoveryStrategy(enable=False)
            producer = self._rstream.Producer(recovery_strategy=recovery, **self._options)
            await asyncio.wait_for(producer.start(), self.timeout)
            self._producers[name] = producer
        return self._producers[name]

    async def _position(self, origin: Origin, to: str) -> int | None:
        name = _name(origin)
        client = await (await self._producer(name)).default_client
        sequence = await client.query_publisher_sequence(stream=to, reference=name)
        return sequence or None

    async def _send(self, origin: Origin, records: Sequence[Record]) -> None:
        # Test messages have no position; redriven ones may be below the last publishing id.
        is_new = bool(records[0].position) and origin.slot_to >= 0
        name = _name(origin) if is_new else None
        producer = await self._producer(name)
        sent = 0
        for to, group in groupby(records, attrgetter("to")):
            for frame, size in self._frames(list(group), is_new):
                if not frame:
                    raise too_large(sent, size, self.frame_max, "the frame_max of the server")
                try:
                    await asyncio.wait_for(self._publish(producer, to, name, frame), self.timeout)
                except Exception as error:
                    raise unavailable(error, sent) from error
                sent += len(frame)

    def _frames(self, records: Sequence[Record], is_new: bool) -> Iterator[tuple[list[Any], int]]:
        """Cut records into frames; an empty one stands for a record that is too large."""
        frame: list[Any] = []
        filled = RECORD_BYTES
        for record in records:
            message = self._rstream.RawMessage(
                _message(record), record.position if is_new else None
            )
            size = len(message.data) + RECORD_BYTES
            if frame and filled + size > self.frame_max:
                yield frame, filled
                frame, filled = [], RECORD_BYTES
            if filled + size > self.frame_max:
                yield [], len(message.data)
            frame.append(message)
            filled += size
        if frame:
            yield frame, filled

    async def _publish(self, producer: Any, to: str, name: str | None, frame: list[Any]) -> None:
        """Send one frame and wait until all of it is confirmed."""
        left = len(frame)
        done = asyncio.get_running_loop().create_future()

        def confirm(status: Any) -> None:
            nonlocal left
            left -= 1
            if not status.is_confirmed and not done.done():
                reason = f"publishing id {status.message_id}: response code {status.response_code}"
                done.set_exception(ConnectionError(f"not confirmed, {reason}"))
            if not left and not done.done():
                done.set_result(None)

        await producer.send_batch(to, frame, publisher_name=name, on_publish_confirm=confirm)
        await done


def _message(record: Record) -> bytes:
    properties = {NAMES[name]: value for name, value in record.attributes.items()}
    content_type = properties.pop(NAMES["datacontenttype"], "application/json")
    for name, value in record.headers.items():
        properties[amqp.text(name)] = value
    return amqp.message(content_type, properties, record.data)


def _name(origin: Origin) -> str:
    """Return the publisher's name of an origin; a digest where that is too long."""
    name = f"outbox-{origin}"
    if len(name.encode()) > NAME_BYTES:
        return f"outbox-{hashlib.sha256(name.encode()).hexdigest()}"
    return name
