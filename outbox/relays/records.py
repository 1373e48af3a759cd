"""Records: a message with its CloudEvents 1.0 attributes, routed to its destination."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..messages import Message
from .sink import CURSOR_ATTRIBUTE, SEQUENCE_ATTRIBUTE, SEQUENCE_DIGITS, Origin, Record

TEST_TYPE = "OutboxTest"
EMPTY_HEADERS = "{}"


class _Drop:
    def __repr__(self) -> str:
        return "outbox.relays.DROP"


class _OwnKey:
    def __repr__(self) -> str:
        return "the message's key"


DROP: Final = _Drop()
"""Returned by a routing function: this message is not sent."""
OWN_KEY: Final = _OwnKey()


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Where a routing function sends a message."""

    to: str | None = None
    """The topic, stream, subject, queue or address; None: as the sink says."""
    key: str | _OwnKey | None = OWN_KEY
    """The ordering key at the destination; the message's own when left out."""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Further headers."""


Route = Callable[[Message], Any]
"""A routing function: takes a message; returns a Target, the name of a destination, or DROP."""


class Recorder:
    """Makes the records of one range: what is the same for all of them is put together once.

    `to`: where the sink sends them, a template. `route`: the routing function, or None.
    """

    def __init__(self, origin: Origin, to: str, route: Route | None) -> None:
        self._target = Target()
        self._to = to.replace("{channel}", origin.channel)
        self._route = route
        self._id = f"{origin.relay}:"
        self._again = f":r{origin.generation}"
        self._common = {
            "specversion": "1.0",
            "datacontenttype": "application/json",
            "source": source_of(origin.channel),
            CURSOR_ATTRIBUTE: str(origin),
        }

    def record(self, message: Message) -> Record | None:
        """Return what is sent of a message; None when the routing function drops it.

        Raises what the routing function raises, and TypeError for an answer that is none.
        """
        target = self._target if self._route is None else self._route_of(message)
        if target is None:
            return None
        key = message.key if isinstance(target.key, _OwnKey) else target.key
        name = f"{self._id}{message.position}"
        return Record(
            message.position,
            f"{name}{self._again}" if message.replayed else name,
            place(self._to if target.to is None else target.to, message.channel, message.type),
            key,
            message.raw_payload.encode(),
            self._attributes(message, key),
            target.headers,
            message.replayed,
        )

    def _route_of(self, message: Message) -> Target | None:
        assert self._route is not None
        target = self._route(message)
        if target is DROP:
            return None
        if isinstance(target, str):
            return Target(target)
        if not isinstance(target, Target):
            raise TypeError(
                f"The routing function returned {target!r}: return an outbox.relays.Target, the "
                "name of a destination, or outbox.relays.DROP."
            )
        return target

    def _attributes(self, message: Message, key: str | None) -> dict[str, str]:
        position = str(message.position)
        attributes = {
            **self._common,
            "id": position,
            "type": message.type,
            "time": _time(message.raw_created_at),
            SEQUENCE_ATTRIBUTE: position.zfill(SEQUENCE_DIGITS),
        }
        if key is not None:
            attributes["subject"] = attributes["partitionkey"] = key
        if message.replayed:
            attributes["outboxreplayed"] = "true"
        if message.erased:
            attributes["outboxerased"] = "true"
        elif message.raw_headers != EMPTY_HEADERS:
            attributes["outboxheaders"] = message.raw_headers
            headers = message.headers
            for name in ("traceparent", "tracestate"):
                if isinstance(headers.get(name), str):
                    attributes[name] = headers[name]
        return attributes


def _time(raw: str) -> str:
    """Return a time of PostgreSQL as RFC 3339 writes does; a datetime takes ten times as long."""
    return raw.replace(" ", "T", 1) + (":00" if raw[-3] in "+-" else "")


def test_record(origin: Origin, to: str) -> Record:
    """Return a message that is marked as a test and is in no log."""
    name = f"test-{uuid.uuid4()}"
    attributes = {
        "specversion": "1.0",
        "id": name,
        "source": source_of(origin.channel),
        "type": TEST_TYPE,
        "datacontenttype": "application/json",
        "outboxtest": "true",
    }
    data = json.dumps({"relay": origin.relay, "test": name}).encode()
    at = place(to, origin.channel, TEST_TYPE)
    return Record(0, f"{origin.relay}:{name}", at, None, data, attributes, {})


def place(template: str, channel: str, type_name: str) -> str:
    """Return the destination that a template names for a channel and a type."""
    if "{" not in template:
        return template
    return template.replace("{channel}", channel).replace("{type}", type_name)


def source_of(channel: str) -> str:
    """Return the CloudEvents source of a channel; with the id it is unique."""
    return f"/outbox/{channel}"
