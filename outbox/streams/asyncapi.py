"""The event classes as an AsyncAPI 3.0 document: channels, messages, payloads, and who reads them.

https://www.asyncapi.com/docs/reference/specification/v3.0.0. This process publishes to each
channel (`send`), and each consumer group reads what it has handlers for (`receive`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from .. import events, groups
from ..messages import STREAM_HEADER, VERSION_HEADER

VERSION = "3.0.0"
SCHEMAS = "#/components/schemas/{name}"


def document(title: str, version: str) -> dict[str, Any]:
    """Return the document. `title`, `version`: of the application, for `info`."""
    contracts = [each.__contract__ for each in events.all_event_types()]
    known = [contract for contract in contracts if contract is not None]
    payloads, schemas = msgspec.json.schema_components(
        [contract.event_type for contract in known], ref_template=SCHEMAS
    )
    names = _Names()
    messages = {
        names.of("message", contract.channel, contract.type): _message(contract, payload)
        for contract, payload in zip(known, payloads, strict=True)
    }
    channels, operations = {}, {}
    for channel in dict.fromkeys(contract.channel for contract in known):
        types = [contract.type for contract in known if contract.channel == channel]
        channels[names.of("channel", channel)] = _channel(channel, types, names)
        publish = names.of("operation", "publish", channel)
        operations[publish] = _operation("send", channel, types, names)
        for group in groups.all_groups():
            if handled := [each for each in types if each in group.routes(channel)]:
                read = names.of("operation", group.name, channel)
                operations[read] = _operation("receive", channel, handled, names)
    return {
        "asyncapi": VERSION,
        "info": {"title": title, "version": version},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }


class _Names:
    """Names of the document's parts: letters, digits, ".", "-" and "_", each given once."""

    def __init__(self) -> None:
        self.given: dict[tuple[str, ...], str] = {}

    def of(self, kind: str, *parts: str) -> str:
        """Return the name of a part, the same one for the same part."""
        if (kind, *parts) not in self.given:
            plain = ".".join(re.sub(r"[^A-Za-z0-9_-]", "_", part) for part in parts)
            taken = {name for (other, *_), name in self.given.items() if other == kind}
            numbered = (f"{plain}_{n}" for n in range(2, len(taken) + 3))
            self.given[kind, *parts] = next(
                name for name in (plain, *numbered) if name not in taken
            )
        return self.given[kind, *parts]


def _message(contract: events.Contract, payload: dict[str, Any]) -> dict[str, Any]:
    headers: dict[str, Any] = {}
    if contract.version != 1:
        headers[VERSION_HEADER] = {"type": "integer", "const": contract.version}
    if contract.is_stream or events.is_stream_channel(contract.channel):
        headers[STREAM_HEADER] = {"type": "integer", "minimum": 1}
    described: dict[str, Any] = {
        "name": contract.type,
        "title": contract.event_type.__name__,
        "contentType": "application/json",
        "headers": {"type": "object", "properties": headers, "required": sorted(headers)},
        "payload": payload,
        "x-outbox-version": contract.version,
    }
    if contract.key is not None:
        described["x-outbox-key"] = contract.key_text
    if contract.was:
        described["x-outbox-was"] = list(contract.was)
    return described


def _channel(channel: str, types: Iterable[str], names: _Names) -> dict[str, Any]:
    return {
        "address": channel,
        "messages": {
            names.of(channel, type): {
                "$ref": f"#/components/messages/{names.of('message', channel, type)}"
            }
            for type in types
        },
        "x-outbox-stream": events.is_stream_channel(channel),
    }


def _operation(action: str, channel: str, types: Iterable[str], names: _Names) -> dict[str, Any]:
    place = f"#/channels/{names.of('channel', channel)}"
    return {
        "action": action,
        "channel": {"$ref": place},
        "messages": [{"$ref": f"{place}/messages/{names.of(channel, type)}"} for type in types],
    }
