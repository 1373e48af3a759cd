"""Publishing: one message beside a business row, and ten thousand at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec
from django.db import transaction

import outbox
from benchmarks import harness
from benchmarks.events import CHANNEL, OrderPlaced, orders
from benchmarks.models import Order, PlainMessage


def run(*, quick: bool) -> None:
    """Print both figures."""
    harness.empty_log()
    turns, transactions = (5, 200) if quick else (15, 500)
    alone = harness.alternate(
        {"publish": single(transactions, publish), "create": single(transactions, create)}, turns
    )
    turns, size = (3, 2_000) if quick else (5, 10_000)
    many = harness.alternate(
        {"publish": lambda: publish_many(size), "create": lambda: _bulk_create(size)}, turns
    )
    harness.show(
        "Publishing",
        ["", "publish", "ORM", "ratio", "goal"],
        [
            [
                "one business row and one message a transaction: `publish()` and `create()`",
                harness.per_second(alone["publish"]),
                harness.per_second(alone["create"]),
                *harness.against(0.95, harness.ratio(alone["publish"], alone["create"])),
            ],
            [
                f"{size:,} at once: `publish_many()` and `bulk_create()`",
                harness.per_second(many["publish"]),
                harness.per_second(many["create"]),
                *harness.against(3, harness.ratio(many["publish"], many["create"])),
            ],
        ],
        " The ORM writes a table with the columns and indexes of the log, without triggers.",
    )


def publish(event: OrderPlaced) -> None:
    """Store an event by the outbox."""
    outbox.publish(event)


def create(event: OrderPlaced) -> None:
    """Store the same row by the ORM."""
    plain(event).save(force_insert=True)


def plain(event: OrderPlaced) -> PlainMessage:
    """Return the row that an event becomes."""
    return PlainMessage(
        channel=CHANNEL,
        key=str(event.order_id),
        type="OrderPlaced",
        payload=msgspec.to_builtins(event),
    )


def single(count: int, store: Callable[[OrderPlaced], None]) -> Callable[[], float]:
    events = itertools.cycle(orders(count))

    def work(count: int) -> None:
        for event in itertools.islice(events, count):
            with transaction.atomic():
                Order.objects.create(customer=event.customer, total=event.total)
                store(event)

    return lambda: harness.rate(count, work)


def publish_many(count: int) -> float:
    events = orders(count)

    def work(count: int) -> None:
        with transaction.atomic():
            outbox.publish_many(events)

    return harness.rate(count, work)


def _bulk_create(count: int) -> float:
    rows = [plain(event) for event in orders(count)]

    def work(count: int) -> None:
        with transaction.atomic():
            PlainMessage.objects.bulk_create(rows)

    return harness.rate(count, work)
