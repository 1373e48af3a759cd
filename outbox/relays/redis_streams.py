"""Redis and Valkey streams: entry ids are positions, so that no entry can be there twice.

A script adds the records one by one and stops at the first that is not taken. The server refuses an
id that is not above the stream's last one: if the stream holds that entry, the record is there
already; so a second relay, and a replay, add nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

from .records import TEST_TYPE
from .sink import HeaderNames, Origin, Record, library, logger, position_in, refused, unavailable

NAMES = HeaderNames("ce_")
LOOK_BACK = 100
"""Entries at the end of a stream among which test messages are passed over."""

ADD = """
local held, last = {}, #ARGV
local at = 1
while at <= last do
    local id, count = ARGV[at], tonumber(ARGV[at + 1])
    local reply = redis.pcall('XADD', KEYS[1], id, unpack(ARGV, at + 2, at + 1 + count))
    if type(reply) == 'table' and reply.err then
        if not string.find(reply.err, 'equal or smaller', 1, true) then
            return {#held, held, reply.err, id}
        end
        if #redis.call('XRANGE', KEYS[1], id, id) == 0 then
            return {#held, held, 'gone', id}
        end
        held[#held + 1] = id
    end
    at = at + 2 + count
end
return {#held, held, '', ''}
"""


class RedisStreams:
    """Adds records to streams of the server at `url`, such as `redis://localhost:6379/0`.

    `stream`: the name; `{channel}` and `{type}` stand for the message's. `maxlen`: about how many
    entries a stream keeps; None: all. `timeout`: seconds to wait for an answer.
    Needs the extra `redis`; raises MissingExtra.
    """

    most_together: int | None = None

    def __init__(
        self,
        url: str,
        *,
        stream: str = "{channel}",
        maxlen: int | None = None,
        timeout: float = 10.0,
    ) -> None:
        self._redis = library("redis", "redis")
        self.url, self.to, self.maxlen, self.timeout = url, stream, maxlen, timeout
        self._connection: Any = None

    def __repr__(self) -> str:
        return f"RedisStreams({self.url.rpartition('@')[2]}, stream={self.to!r})"

    def position(self, origin: Origin, to: str | None) -> int | None:
        """Return the position in the last entry of the stream, if that is of this origin."""
        if to is None:
            return None
        try:
            entries = self._client().xrevrange(to, count=LOOK_BACK)
        except Exception as error:
            raise unavailable(error) from error
        for _, fields in entries:
            attributes = {
                name.decode()[3:]: value.decode()
                for name, value in fields.items()
                if name.startswith(b"ce_")
            }
            if attributes.get("type") != TEST_TYPE:
                return position_in(attributes, origin)
        return None

    def send(self, origin: Origin, records: Sequence[Record]) -> None:
        """Add the records; those that a stream holds already are named in the log."""
        sent, held = 0, list[str]()
        for to, group in groupby(records, attrgetter("to")):
            batch = list(group)
            try:
                self._send(to, batch, held)
            except Exception as error:
                error.sent = sent + getattr(error, "sent", 0)  # type: ignore[attr-defined]
                raise
            sent += len(batch)
        if held:
            logger.warning(
                "%s: stream holds %d of these ids already, from %s to %s: not added again",
                origin.relay,
                len(held),
                held[0],
                held[-1],
                extra={"group": origin.relay, "channel": origin.channel},
            )

    def close(self) -> None:
        """Give up the connection."""
        if self._connection is not None:
            try:
                self._connection.close()
            except Exception:
                logger.debug("closing a Redis connection failed", exc_info=True)
            self._connection = None

    def _client(self) -> Any:
        if self._connection is None:
            self._connection = self._redis.Redis.from_url(
                self.url, socket_timeout=self.timeout, socket_connect_timeout=self.timeout
            )
        return self._connection

    def _send(self, to: str, batch: Sequence[Record], held: list[str]) -> None:
        arguments: list[Any] = []
        ids: list[str] = []
        for record in batch:
            fields = _fields(record)
            ids.append(self._id(record, to))
            arguments += [ids[-1], str(len(fields)), *fields]
        try:
            # One script is one step for the server: no other relay's entries come between.
            _, found, problem, at = self._client().eval(ADD, 1, to, *arguments)
        except Exception as error:
            raise unavailable(error) from error
        held += [each.decode() for each in found]
        if self.maxlen is not None:
            self._client().xtrim(to, maxlen=self.maxlen, approximate=True)
        if problem:
            sent = ids.index(at.decode())
            self._refuse(problem.decode(), batch[sent], sent, held)

    def _refuse(self, problem: str, record: Record, sent: int, held: list[str]) -> None:
        if problem != "gone":
            raise unavailable(problem, sent)
        raise refused(
            sent,
            f"the stream {record.to} has an id above {record.position}-0 and no such entry, and "
            "Redis takes rising ids only: another writer, a second range or a redrive",
        )

    def _id(self, record: Record, to: str) -> str:
        """Return the entry's id; a test message comes just behind the last entry."""
        if record.position:
            return f"{record.position}-0"
        try:
            last: str = self._client().xinfo_stream(to)["last-generated-id"].decode()
        except self._redis.ResponseError:
            return "0-1"
        except Exception as error:
            raise unavailable(error) from error
        time, _, number = last.partition("-")
        return f"{time}-{int(number) + 1}"


def _fields(record: Record) -> list[Any]:
    fields: list[Any] = ["data", record.data]
    for name, value in record.attributes.items():
        fields += [NAMES[name], value]
    headers: Mapping[str, str] = record.headers
    for name, value in headers.items():
        fields += [name, value]
    return fields
