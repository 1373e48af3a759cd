"""Consuming a backlog with one worker, against bare loops that do the same work."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from django.db import connection, transaction

import outbox
from benchmarks import consumers, harness
from benchmarks.events import CHANNEL, OrderPlaced, orders
from outbox.worker import Worker

BATCH = 500
FETCH = """
    SELECT position, key, type, payload::text, headers::text, created_at::text
    FROM outbox_message
    WHERE channel = %s AND position > %s
    ORDER BY position
    LIMIT %s
"""

Figures = dict[str, list[float]]


def run(*, quick: bool) -> None:
    """Print the rates of a handler that does nothing, one that writes, and a batch handler."""
    backlog, loads = (40_000, 1) if quick else (200_000, 3)
    read: Figures = {"stale": [], "fresh": [], "bare": []}
    for _ in range(loads):
        for name, rates in _read(backlog).items():
            read[name].extend(rates)
    turns = 10 if quick else 60
    single = _write(consumers.bill, _one_by_one, BATCH, turns)
    together = _write(consumers.bill_together, _all_at_once, 5 * BATCH, turns // 3)
    _show(backlog, read, single, together)


def load(count: int, *, beside: int = 1_000) -> None:
    """Empty the log and publish a backlog, which leaves the planner's statistics stale.

    They know a log with the messages `beside` it, which are of another channel.
    """
    harness.empty_log()
    with transaction.atomic():
        for number in range(beside):
            outbox.publish_raw("others", "Other", {"number": number})
    harness.execute("ANALYZE outbox_message")
    for first in range(0, count, 10_000):
        with transaction.atomic():
            outbox.publish_many(orders(min(10_000, count - first), 1_000_000 + first))


def consumer(group: outbox.ConsumerGroup) -> Callable[[int], None]:
    """Return a function by which a group handles its next messages, from the first one on."""
    harness.execute('DELETE FROM outbox_cursor WHERE "group" = %s', [group.name])
    worker = Worker([group], batch_size=BATCH)
    worker.register()

    def consume(count: int) -> None:
        end = worker.handled + count
        while worker.handled < end:
            assert worker.run_once() is not None, f"{group} stopped after {worker.handled} messages"

    return consume


def _read(backlog: int) -> Figures:
    load(backlog)
    turns = 10
    count = backlog // turns
    stale, fresh, bare = consumer(consumers.look), consumer(consumers.look_again), _bare_reader()
    figures = harness.alternate({"stale": lambda: harness.rate(count, stale)}, turns)
    harness.execute("ANALYZE outbox_message")
    return figures | harness.alternate(
        {
            "fresh": lambda: harness.rate(count, fresh),
            "bare": lambda: harness.rate(count, bare),
        },
        turns,
    )


def _bare_reader() -> Callable[[int], None]:
    decoder = msgspec.json.Decoder(OrderPlaced)
    position = 0

    def read(count: int) -> None:
        nonlocal position
        with connection.cursor() as cursor:
            for _ in range(count // BATCH):
                cursor.execute(FETCH, [CHANNEL, position, BATCH])
                rows = cursor.fetchall()
                for row in rows:
                    decoder.decode(row[3])
                position = rows[-1][0]

    return read


def _write(
    group: outbox.ConsumerGroup,
    handle: Callable[[Sequence[OrderPlaced]], None],
    count: int,
    turns: int,
) -> Figures:
    consume, events = consumer(group), orders(count)

    def bare(count: int) -> None:
        for start in range(0, count, BATCH):
            with transaction.atomic():
                handle(events[start : start + BATCH])

    return harness.alternate(
        {
            "ours": lambda: harness.rate(count, consume),
            "bare": lambda: harness.rate(count, bare),
        },
        turns,
    )


def _one_by_one(events: Sequence[OrderPlaced]) -> None:
    for event in events:
        consumers.create_invoice(event)


def _all_at_once(events: Sequence[OrderPlaced]) -> None:
    consumers.create_invoices(events)


def _show(backlog: int, read: Figures, single: Figures, together: Figures) -> None:
    writes = f"the handler inserts a row by the ORM; the loop inserts, {BATCH} a transaction"
    rows = [
        (
            "the handler does nothing; the loop fetches and decodes",
            read["fresh"],
            read["bare"],
            0.5,
        ),
        ("the same before ANALYZE; against after it", read["stale"], read["fresh"], 0.8),
        (writes, single["ours"], single["bare"], 0.95),
        ("the same with a batch handler and bulk_create", together["ours"], together["bare"], None),
    ]
    harness.show(
        "Consuming",
        ["", "worker", "bare", "ratio", "goal"],
        [
            [
                what,
                harness.per_second(ours),
                harness.per_second(floor),
                *harness.against(goal, harness.ratio(ours, floor)),
            ]
            for what, ours, floor, goal in rows
        ],
        f" A backlog of {backlog:,} typed messages, one worker, batches of {BATCH}.",
    )
