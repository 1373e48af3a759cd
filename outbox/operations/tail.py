"""The log as people and programs read it: the latest messages, and the new ones as they come.

Only what lies at or below the horizon is shown, so that nothing is left out between two looks.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Iterator
from typing import Any

from django.db import connections

from .. import groups, message_log
from ..checks.declarations import published_types
from ..conf import log_alias
from ..exceptions import UnknownChannel, UnknownType, did_you_mean
from ..sql import run_statement
from .reset_targets import ResetTargets

EVERYTHING = 2**63 - 1
CHUNK = 500
"""Messages that are read at a time."""
FOLLOW_SECONDS = 0.25
"""Between two looks for new messages."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message of the log."""

    position: int
    channel: str
    key: str | None
    type: str
    payload: Any
    headers: dict[str, Any]
    created_at: datetime.datetime


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which messages to show; None: all."""

    channel: str | None = None
    key: str | None = None
    type: str | None = None


def check_names(chosen: Filter, using: str | None = None) -> None:
    """Raise UnknownChannel or UnknownType for a name that neither the code nor the log has."""
    using = log_alias(using)
    published = published_types()
    for group in groups.all_groups():
        for name in group.channels:
            published.setdefault(name, set()).update(group.routes(name))
    channel, kind = chosen.channel, chosen.type

    def is_stored(wanted: Filter) -> bool:
        return bool(latest(wanted, 1, using)[0])

    if channel not in (None, *published) and not is_stored(Filter(channel=channel)):
        raise UnknownChannel(channel=channel, suggestion=did_you_mean(channel, published))
    types = set().union(*(published[c] for c in published if channel in (None, c)))
    if kind not in (None, *types) and not is_stored(Filter(channel=channel, type=kind)):
        raise UnknownType(type=kind, suggestion=did_you_mean(kind, types))


def latest(chosen: Filter, most: int, using: str | None = None) -> tuple[list[StoredMessage], int]:
    """Return the last `most` messages in order, and the position up to which was looked."""
    using = log_alias(using)
    horizon = message_log.horizon(using)
    return _read("read_log_end", chosen, 0, horizon, most, using)[::-1], horizon


def read(chosen: Filter, after: int, using: str | None = None) -> Iterator[StoredMessage]:
    """Yield the messages after a position, up to the horizon at the beginning."""
    using = log_alias(using)
    horizon = message_log.horizon(using)
    while True:
        messages = _read("read_log", chosen, after, horizon, CHUNK, using)
        yield from messages
        if len(messages) < CHUNK:
            return
        after = messages[-1].position


def follow(chosen: Filter, after: int, using: str | None = None) -> Iterator[StoredMessage]:
    """Yield the messages after a position, and new ones as they come, forever."""
    using = log_alias(using)
    while True:
        horizon = message_log.horizon(using)
        messages = _read("read_log", chosen, after, horizon, CHUNK, using)
        yield from messages
        if len(messages) == CHUNK:
            after = messages[-1].position
        else:
            after = max(after, horizon)
            time.sleep(FOLLOW_SECONDS)


def text_of(payload: Any) -> str:
    """Return a payload as compact JSON."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"))


def visible(after: int, using: str | None = None) -> list[StoredMessage]:
    """Return all messages after a position, also those above the horizon; for tests."""
    using = log_alias(using)
    return _read("read_log", Filter(), after, EVERYTHING, EVERYTHING, using)


def position_of(start: str | int | datetime.datetime, using: str | None = None) -> int:
    """Return the position after which to read: "earliest", "latest", from a position, from a time.

    A position includes its message. Raises InvalidTime for a time without zone.
    """
    using = log_alias(using)
    targets = ResetTargets(using)
    if isinstance(start, int):
        return start - 1
    if isinstance(start, datetime.datetime):
        return targets.position_before(start)
    return targets.earliest if start == "earliest" else targets.latest


def _read(
    query: str, chosen: Filter, after: int, until: int, most: int, using: str
) -> list[StoredMessage]:
    parameters: dict[str, Any] = {"after": after, "until": until, "most": most}
    with connections[using].cursor() as cursor:
        run_statement(cursor, query, parameters | dataclasses.asdict(chosen))
        return [_message(*row) for row in cursor.fetchall()]


def _message(
    position: int,
    channel: str,
    key: str | None,
    type_name: str,
    payload: str,
    headers: str,
    at: str,
) -> StoredMessage:
    time_of = datetime.datetime.fromisoformat(at)
    return StoredMessage(
        position, channel, key, type_name, json.loads(payload), json.loads(headers), time_of
    )
