"""Retention: what many segments cost, and the long run."""

from __future__ import annotations

import os
import statistics
import time

from django.db import transaction

import outbox
from benchmarks import harness
from benchmarks.events import CHANNEL, orders
from benchmarks.long_run import LongRun
from outbox.retention import segments
from outbox.testing import isolated_groups
from outbox.worker import Worker


def run(*, quick: bool) -> None:
    """Print what segments cost, then the long run (OUTBOX_SOAK_MESSAGES, 5000000 by default)."""
    _show_segments(20 if quick else 60)
    messages = int(os.environ.get("OUTBOX_SOAK_MESSAGES", "100000" if quick else "5000000"))
    LongRun(messages).show()


def _show_segments(turns: int) -> None:
    rates: dict[str, dict[int, float]] = {"consume": {}, "publish": {}}
    for count in (1, 500):
        make_segments(count, 1_000)
        published = [harness.rate(200, publish) for _ in range(turns)]
        consumed = [consume(20_000) for _ in range(max(3, turns // 5))]
        rates["publish"][count] = statistics.median(published)
        rates["consume"][count] = statistics.median(consumed)
    harness.show(
        "Segments",
        ["", "500 segments", "1 segment", "ratio", "goal"],
        [
            [
                what,
                f"{figures[500]:,.0f}/s",
                f"{figures[1]:,.0f}/s",
                *harness.against(0.9, figures[500] / figures[1]),
            ]
            for what, figures in rates.items()
        ],
        " Publishing: one message a transaction. Consuming: a backlog of 20,000 in a new session, batches of 500, an empty handler.",
    )


def make_segments(count: int, size: int) -> None:
    """Begin the log again with some segments of a size, and two large ones behind them."""
    for each in segments.list_segments():
        if each.lower is not None:
            harness.execute(f"DROP TABLE {each.name}")
    harness.empty_log()
    harness.execute("ALTER SEQUENCE outbox_message_position_seq RESTART WITH 1")
    bounds = [(max(1, n * size), (n + 1) * size) for n in range(count - 1)]
    last = bounds[-1][1] if bounds else 1
    for lower, upper in [*bounds, (last, last + 1_000_000)]:
        segments._create(lower, upper, "default")
    harness.execute("SELECT setval('outbox_message_position_seq', %s)", [last])


def publish(count: int) -> None:
    """Publish messages, one a transaction."""
    for event in orders(count):
        with transaction.atomic():
            outbox.publish(event)


def consume(count: int) -> float:
    """Return the rate at which a new worker handles messages in batches."""
    with isolated_groups():
        group = outbox.ConsumerGroup(f"segments-{time.monotonic_ns()}", [CHANNEL], start="latest")
        group.batch_handler("OrderPlaced")(lambda events, messages: None)
        worker = Worker(groups=[group])
        worker.register()
        with transaction.atomic():
            outbox.publish_many(orders(count))
        return harness.rate(count, lambda _: _exhaust(worker))


def _exhaust(worker: Worker) -> None:
    while worker.run_once():
        pass
