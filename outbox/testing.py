"""Tools for the tests of projects that use the outbox; they work inside plain `TestCase`.

`drain` lets groups handle what is pending; `published` says what was published;
`isolated_groups` forgets the groups that a test declares; `sink_contract` tests a relay's sink.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar, overload

from django.db import router
from django.db.models.signals import post_migrate
from django.dispatch import receiver

from . import events, groups, message_log
from .conf import log_alias
from .consuming import failures
from .encoding import Key, encode, key_text
from .groups import ConsumerGroup
from .messages import Message, decode
from .operations import tail
from .operations.tail import StoredMessage
from .relays.contract import Received, sink_contract
from .worker import Worker

__all__ = [
    "Published",
    "Received",
    "drain",
    "isolated_groups",
    "published",
    "sink_contract",
]

EventType = TypeVar("EventType")


def drain(*chosen: ConsumerGroup | str, using: str | None = None, raise_errors: bool = True) -> int:
    """Let groups handle what is pending; return how many messages they moved past.

    Without a group: all declared groups. Also sees what the surrounding transaction of a
    `TestCase` published. A message that failed and backs off is not waited for.

    Raises the exception of the first handler that fails, and what makes a message undecodable,
    after the failed attempt was recorded; with `raise_errors=False` the rest is handled instead.
    """
    worker = Worker(chosen or groups.all_groups(), using=using, count_own_floor=False)
    failed: list[failures.Failure] = []
    token = failures.watcher.set(failed.append)
    try:
        before = -1
        while worker.handled > before:  # once more, for what the handlers published
            before = worker.handled
            while worker.run_once() is not None:
                if failed and raise_errors:
                    raise failed[0].error
    finally:
        failures.watcher.reset(token)
    return worker.handled


def published(using: str | None = None) -> Published:
    """Return what is in the log, a list in order; in a test that is what the test published.

    What data migrations published is left out, if this module was imported before they ran.

    As a context manager, `with published() as messages:`, only what the block published.
    """
    return Published(log_alias(using))


def isolated_groups(*, empty: bool = False) -> contextlib.AbstractContextManager[None]:
    """Forget at the end of the block the groups and handlers that were declared in it.

    `empty`: whether the block begins without any group, so that `drain()` lets only those
    handle messages that the block declares.
    """
    return groups.isolated(keep=lambda group: not empty)


_prepared: dict[str, int] = {}
"""Alias -> highest position that was stored when its database was migrated or flushed."""


@receiver(post_migrate, dispatch_uid="outbox.testing")
def _note_prepared(sender: Any, using: str, **kwargs: Any) -> None:
    """Note what data migrations published, which no test did."""
    if sender.label == "outbox" and router.allow_migrate(using, "outbox"):
        log = sender.get_model("Message").objects.using(using)
        highest = log.order_by("-position").values_list("position", flat=True).first()
        _prepared[using] = highest or 0


class Published(Sequence[StoredMessage]):
    """Messages of the log, in order; it reads the log at every use until its block ends."""

    def __init__(self, using: str) -> None:
        self._using = using
        self._after = _prepared.get(using, 0)
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
        return [decode(_as_handled(message), type) for message in self.matching(type)]

    def _messages(self) -> list[StoredMessage]:
        if self._kept is not None:
            return self._kept
        return tail.visible(self._after, self._using)


def _as_handled(message: StoredMessage) -> Message:
    texts = encode(message.payload, "payload"), encode(message.headers, "headers")
    at = message.created_at.isoformat()
    named = message.position, message.channel, message.key, message.type
    return Message(*named, 1, False, "", *texts, at)


def _fits(wanted: Any, payload: Any) -> bool:
    if isinstance(wanted, Mapping) and isinstance(payload, Mapping):
        return all(name in payload and payload[name] == wanted[name] for name in wanted)
    return bool(wanted == payload)


def _line(message: StoredMessage) -> str:
    return (
        f"  {message.position} {message.channel} {message.type} {message.key!r} {message.payload}"
    )
