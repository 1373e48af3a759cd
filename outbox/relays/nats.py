"""NATS JetStream: each message expects the one before it to be the stream's last.

`Nats-Expected-Last-Msg-Id` makes a chain: when one message of a batch is not stored, none behind it
is; and of two relays the one that is behind is refused. A batch is in flight at once, and every
message is confirmed. The chain needs a stream to which nothing else is published and a relay of one
range; `exclusive=False` gives it up, and then only `Nats-Msg-Id` keeps doubles out, for as long as
the stream's duplicate window.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from . import event_loop
from .records import TEST_TYPE
from .sink import HeaderNames, Origin, Record, library, position_in, too_large, unavailable

NAMES = HeaderNames("ce-")
LOOK_BACK = 100
"""Messages at the end of a stream among which those of other origins are passed over."""
WRONG_LAST = 10070, 10071, 10164
"""Error codes of JetStream: the last message is not the expected one."""


class Nats:
    """Publishes to JetStream at `servers`, such as `nats://localhost:4222`, into `stream`.

    `subject`: of each message; `{channel}` and `{type}` stand for the message's. The stream must
    exist and take the subjects. `exclusive`: only this relay publishes into the stream. `timeout`:
    seconds to wait for confirmation. Further options go to `nats.connect`.
    Needs the extra `nats`; raises MissingExtra.
    """

    most_together: int | None = None

    def __init__(
        self,
        servers: str | list[str],
        *,
        stream: str,
        subject: str = "{channel}.{type}",
        exclusive: bool = True,
        timeout: float = 10.0,
        **options: Any,
    ) -> None:
        self._nats = library("nats", "nats")
        self.servers = [servers] if isinstance(servers, str) else list(servers)
        self.stream, self.to, self.exclusive = stream, subject, exclusive
        self.timeout, self.options = timeout, options
        self._connection: Any = None
        self._last_id: str | None = None
        """The id of the stream's last message, once it is known; "" when the stream is empty."""

    def __repr__(self) -> str:
        hosts = ", ".join(each.rpartition("@")[2] for each in self.servers)
        return f"Nats({hosts}, stream={self.stream!r}, subject={self.to!r})"

    def position(self, origin: Origin, to: str | None) -> int | None:
        """Return the position of the last message of this origin near the end of the stream."""
        found: int | None = event_loop.run_for_sink(self._position(origin), self.timeout)
        return found

    def send(self, origin: Origin, records: Sequence[Record]) -> None:
        """Publish the records and wait until the stream has stored them."""
        event_loop.run_for_sink(self._send(origin, records), self.timeout)

    def close(self) -> None:
        """Give up the connection."""
        connection, self._connection, self._last_id = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):
                event_loop.run(connection.close(), self.timeout)

    async def _client(self) -> Any:
        if self._connection is None:
            options = {"allow_reconnect": False, "connect_timeout": self.timeout, **self.options}
            self._connection = await self._nats.connect(self.servers, error_cb=_silent, **options)
        return self._connection

    async def _position(self, origin: Origin) -> int | None:
        manager = (await self._client()).jsm()
        state = (await manager.stream_info(self.stream)).state
        self._last_id = ""
        for sequence in range(state.last_seq, max(state.first_seq, 1) - 1, -1)[:LOOK_BACK]:
            try:
                headers = (await manager.get_msg(self.stream, sequence)).headers or {}
            except self._nats.js.errors.NotFoundError:
                continue
            if sequence == state.last_seq:
                self._last_id = headers.get("Nats-Msg-Id", "")
            attributes = {
                name[3:]: value for name, value in headers.items() if name.startswith("ce-")
            }
            found = position_in(attributes, origin)
            if found is not None:
                return found
            if self.exclusive and attributes.get("type") != TEST_TYPE:
                return None
        return None

    async def _send(self, origin: Origin, records: Sequence[Record]) -> None:
        client = await self._client()
        is_chained = self.exclusive and origin.is_whole and bool(records[0].position)
        if is_chained and self._last_id is None:
            await self._position(origin)
        js = client.jetstream(timeout=self.timeout, publish_async_max_pending=len(records) + 1)
        futures, refusal = [], None
        last = self._last_id
        for index, record in enumerate(records):
            headers = _headers(record)
            size = len(record.data) + sum(len(n) + len(v) + 4 for n, v in headers.items()) + 14
            if size > client.max_payload:
                refusal = too_large(index, size, client.max_payload, "max_payload of the server")
                break
            if is_chained and last:
                headers["Nats-Expected-Last-Msg-Id"] = last
            futures.append(
                await js.publish_async(record.to, record.data, stream=self.stream, headers=headers)
            )
            last = record.id
        answers = await asyncio.gather(*futures, return_exceptions=True)
        for sent, answer in enumerate(answers):
            if isinstance(answer, BaseException):
                raise unavailable(answer, sent)
        self._last_id = last if is_chained else None
        if refusal is not None:
            raise refusal


def _headers(record: Record) -> dict[str, str]:
    headers = {NAMES[name]: value for name, value in record.attributes.items()}
    headers.update(record.headers)
    headers["Nats-Msg-Id"] = record.id
    return headers


async def _silent(error: Exception) -> None:
    """Leave errors to the calls that they belong to."""
