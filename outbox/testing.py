"""Tools for the tests of projects that use the outbox; they work inside plain `TestCase`.

`drain` lets groups handle what is pending; `published` says what was published;
`isolated_groups` forgets the groups that a test declares.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar, overload

from . import events, groups, message_log
from .encoding import Key, encode, key_text
from .groups import ConsumerGroup
from .operations import tail
from .operations.tail import StoredMessage
from .worker import Worker

EventType = TypeVar("EventType")


def drain(*chosen: ConsumerGroup | str, using: str = "default") -> int:
    """Let groups handle what is pending; return how many messages they moved past.

    Without a group: all declared groups. Also sees what the surrounding transaction of a
    `TestCase` published. A message that failed and backs off is not waited for.
    """
    worker = Worker(chosen or groups.all_groups(), using=using, count_own_floor=False)
    while worker.drain():  # once more, for what the handlers published
        pass
    return worker.handled


def published(using: str = "default") -> Published:
    """Return what is in the log, a list in order; in a test that is what the test published.

    As a context manager, `with published() as messages:`, only what the block published.
    """
    return Published(using)


def isolated_groups(*, empty: bool = False) -> contextlib.AbstractContextManager[None]:
    """Forget at the end of the block the groups and handlers that were declared in it.

    `empty`: whether the block begins without any group, so that `drain()` lets only those
    handle messages that the block declares.
    """
    return groups.isolated(empty=empty)


class Published(Sequence[StoredMessage]):
    """Messages of the log, in order; it looks again at every use until its block ends."""

    def __init__(self, using: str) -> None:
        self._using = using
        self._after = 0
        self._kept: list[StoredMessage] | None = None

    def __enter__(self) -> Self:
        self.restart()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._kept = self._messages()

    def restart(self) -> None:
        """Forget what was published until now."""
        self._after, self._kept = message_log.last_position(self._using), None

    def __len__(self) -> int:
        return len(self._messages())

    @overload
    def __getitem__(self, index: int) -> StoredMessage: ...
    @overload
    def __getitem__(self, index: slice) -> list[StoredMessage]: ...
    def __getitem__(self, index: int | slice) -> StoredMessage | list[StoredMessage]:
        return self._messages()[index]

    def __repr__(self) -> str:
        lines = [_line(message) for message in self._messages()]
        return "\n".join(["<published:", *lines, ">"]) if lines else "<published: nothing>"

    def matching(
        self,
        type: type[Any] | str | None = None,
        *,
        channel: str | None = None,
        key: Key = None,
        payload: Any = None,
    ) -> list[StoredMessage]:
        """Return the messages that fit what is given; None fits everything.

        `type`: an event class, a `Change[…]`, or a type name. `payload`: of a mapping only the
        given keys are compared; values are compared as they look in JSON.
        """
        of_type = None if type is None or isinstance(type, str) else events.sources(type)
        wanted = None if payload is None else json.loads(encode(payload, "payload"))
        return [
            message
            for message in self._messages()
            if (of_type is None or (message.channel, message.type) in of_type)
            and (not isinstance(type, str) or message.type == type)
            and (channel is None or message.channel == channel)
            and (key is None or message.key == key_text(key))
            and (wanted is None or _fits(wanted, message.payload))
        ]

    def one(self, type: type[Any] | str | None = None, **conditions: Any) -> StoredMessage:
        """Return the only message that fits; arguments as for `matching`.

        Raises AssertionError, which lists what was published, when there is none or several.
        """
        found = self.matching(type, **conditions)
        assert len(found) == 1, (
            f"{len(found)} messages fit {type or 'any type'} {conditions or ''}, not 1, of {self!r}"
        )
        return found[0]

    def events_of(self, type: type[EventType]) -> list[EventType]:
        """Return the events of a class, or of a `Change[…]`, that are there, decoded."""
        return [events.decode(_as_handled(message), type) for message in self.matching(type)]

    def _messages(self) -> list[StoredMessage]:
        if self._kept is not None:
            return self._kept
        return tail.visible(self._after, self._using)


def _as_handled(message: StoredMessage) -> events.Message:
    texts = encode(message.payload, "payload"), encode(message.headers, "headers")
    at = message.created_at.isoformat()
    named = message.position, message.channel, message.key, message.type
    return events.Message(*named, 1, False, "", *texts, at)


def _fits(wanted: Any, payload: Any) -> bool:
    if isinstance(wanted, Mapping) and isinstance(payload, Mapping):
        return all(name in payload and payload[name] == wanted[name] for name in wanted)
    return bool(wanted == payload)


def _line(message: StoredMessage) -> str:
    return (
        f"  {message.position} {message.channel} {message.type} {message.key!r} {message.payload}"
    )
