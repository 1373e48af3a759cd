"""Groups that record every run of a handler and fail where a test says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection

import outbox
from outbox.models import Cursor, Message, ParkedMessage
from outbox.testing import isolated_groups
from outbox.worker import Worker
from tests.shop.models import Effect
from tests.support.publishing import CHANNEL

AT_ONCE = outbox.Retry(max_attempts=3, base=0, jitter=False)
"""Three tries without a pause between them."""


class Script:
    """A consumer group of the channel "trouble", and what its handler does."""

    def __init__(self, name: str, *, batch: bool = False, **options: Any) -> None:
        options.setdefault("retry", AT_ONCE)
        self.group = outbox.ConsumerGroup(name, channels=[CHANNEL], **options)
        self.runs: list[outbox.Message] = []
        self.faults: dict[Any, Exception] = {}
        """Position or key -> what the handler raises there."""
        self.register = self.group.batch_handler if batch else self.group.handler
        self.register("Order")(self.handle_all if batch else self.handle)

    def do(self, handler: Callable[..., None]) -> None:
        """Let another function handle the messages; most call `handle` of this one."""
        self.group._routes.clear()
        self.register("Order")(handler)

    def act_at(self, position: int, act: Callable[[], object]) -> None:
        """Do something in the handler of the message at a position, after its work."""

        def handle(payload: Any, message: outbox.Message) -> None:
            self.handle(payload, message)
            if message.position == position:
                act()

        self.do(handle)

    def handle(self, payload: Any, message: outbox.Message) -> None:
        self.runs.append(message)
        Effect.objects.create(
            group=self.group.name,
            channel=message.channel,
            position=message.position,
            key=message.key,
            type=message.type,
            attempt=message.attempt,
            backend=0,
        )
        for place in (message.position, message.key):
            if place in self.faults:
                raise self.faults[place].with_traceback(None)

    def handle_all(self, payloads: list[Any], messages: list[outbox.Message]) -> None:
        for payload, message in zip(payloads, messages, strict=True):
            self.handle(payload, message)

    def drain(self) -> int:
        """Let a worker handle what is pending."""
        return Worker([self.group]).drain()

    def times(self) -> dict[int, int]:
        """How often the handler ran, by position."""
        positions = [message.position for message in self.runs]
        return {position: positions.count(position) for position in sorted(set(positions))}

    def effects(self) -> list[int]:
        """The positions whose effects are kept, in the order in which they came."""
        effects = Effect.objects.filter(group=self.group.name).order_by("id")
        return list(effects.values_list("position", flat=True))

    def parked(self) -> list[tuple[int, str]]:
        """Position and reason of each parked message."""
        rows = ParkedMessage.objects.filter(group=self.group.name).order_by("position")
        return list(rows.values_list("position", "reason"))

    def due(self) -> None:
        """Let what backs off be tried at once."""
        Cursor.objects.filter(group=self.group.name).update(retry_at=None)

    def cursor(self) -> Cursor:
        return Cursor.objects.get(group=self.group.name)


@pytest.fixture
def script() -> Iterator[Any]:
    """Declare a group for one test; it is forgotten afterwards."""

    def make(name: str = "scripted", **options: Any) -> Script:
        return Script(name, **options)

    with isolated_groups():
        yield make


def account(group: str) -> tuple[int, int]:
    """What the cursors of a group count, and what the log holds of it: both must be equal."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT
                sum(processed + skipped + (
                    SELECT count(*) FROM outbox_parked_message AS p
                    WHERE p."group" = c."group" AND p.channel = c.channel
                      AND p.slot BETWEEN slot_from AND slot_to AND p.position > counted_from
                ))::int,
                sum((
                    SELECT count(*) FROM outbox_message AS m
                    WHERE m.channel = c.channel AND m.slot BETWEEN slot_from AND slot_to
                      AND m.position > counted_from AND m.position <= c.position
                ))::int,
                bool_and(parked = (
                    SELECT count(*) FROM outbox_parked_message AS p
                    WHERE p."group" = c."group" AND p.channel = c.channel
                      AND p.slot BETWEEN slot_from AND slot_to
                ))
            FROM outbox_cursor AS c WHERE "group" = %s
            """,
            [group],
        )
        counted, stored, agrees = cursor.fetchone()
    assert agrees, "the counter of parked messages is not their number"
    return counted, stored


def stored() -> list[int]:
    """The positions of the channel "trouble"."""
    messages = Message.objects.filter(channel=CHANNEL).order_by("position")
    return list(messages.values_list("position", flat=True))
