"""Retention: many segments, and a long run of publishers, groups and maintenance side by side."""

from __future__ import annotations

import os
import statistics
import threading
import time

from django.db import connection, connections, transaction
from django.test import override_settings

import outbox
from benchmarks import harness
from benchmarks.events import CHANNEL, orders
from outbox.retention import log_lock, maintenance, segments
from outbox.testing import isolated_groups
from outbox.worker import Worker

SEGMENT = 20_000
"""Positions in a segment of the long run."""


def run(*, quick: bool) -> None:
    """Print what segments cost, then the long run (OUTBOX_SOAK_MESSAGES, 5000000 by default)."""
    _show_segments(20 if quick else 60)
    messages = int(os.environ.get("OUTBOX_SOAK_MESSAGES", "100000" if quick else "5000000"))
    _Soak(messages).show()


def _show_segments(turns: int) -> None:
    rates: dict[str, dict[int, float]] = {"consume": {}, "publish": {}}
    for count in (1, 500):
        _segments(count, 1_000)
        published = [harness.rate(200, _publish) for _ in range(turns)]
        consumed = [_consume(2_000) for _ in range(max(3, turns // 5))]
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
        " Publishing: one message a transaction. Consuming: batches of 500, an empty handler.",
    )


def _segments(count: int, size: int) -> None:
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


def _publish(count: int) -> None:
    for event in orders(count):
        with transaction.atomic():
            outbox.publish(event)


def _consume(count: int) -> float:
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


class _Soak:
    """Two publishers, three groups and maintenance, until so many messages are handled."""

    def __init__(self, messages: int) -> None:
        self.messages = messages
        self.published = 0
        self.times: list[tuple[float, float]] = []
        """When a publisher began, and how long it took."""
        self.removing: list[tuple[float, float]] = []
        self.sizes: list[int] = []
        self.seen = {name: [0, 0] for name in ("one", "two", "three")}
        """Group -> messages, sum of their numbers."""
        self.failed: list[BaseException] = []
        self.stop = threading.Event()

    def show(self) -> None:
        """Run it and print the figures."""
        _segments(1, SEGMENT)
        harness.execute("DROP TABLE outbox_message_1")
        for number in range(4):
            segments._create(max(1, number * SEGMENT), (number + 1) * SEGMENT, "default")
        with isolated_groups(), override_settings(OUTBOX={"KEEP": "2 seconds"}):
            self._run()
        for raised in self.failed:
            raise raised
        self._print()

    def _run(self) -> None:
        workers = [self._worker(name) for name in self.seen]
        publishers = [threading.Thread(target=self._guard, args=(self._publish, n)) for n in (0, 1)]
        others = [threading.Thread(target=self._guard, args=(self._work, each)) for each in workers]
        others.append(threading.Thread(target=self._guard, args=(self._maintain, None)))
        for thread in (*publishers, *others):
            thread.start()
        for thread in publishers:
            thread.join()
        self.stop.set()
        for thread in others:
            thread.join()
        maintenance.maintain("default")

    def _guard(self, function, argument) -> None:
        try:
            function(argument)
        except BaseException as error:
            self.failed.append(error)
            self.stop.set()
        finally:
            connections.close_all()

    def _publish(self, number: int) -> None:
        """Publish batches, and a single message between them, whose time is taken."""
        half = self.messages // 2
        first = 1 + number * half
        while first <= (number + 1) * half and not self.failed:
            size = min(500, (number + 1) * half - first + 1)
            with transaction.atomic():
                outbox.publish_many(orders(size - 1, first))
            began = time.perf_counter()
            with transaction.atomic():
                outbox.publish(orders(1, first + size - 1)[0])
            self.times.append((began, time.perf_counter() - began))
            first += size

    def _worker(self, name: str) -> Worker:
        group = outbox.ConsumerGroup(name, [CHANNEL])
        counts = self.seen[name]

        @group.batch_handler("OrderPlaced")
        def count(events, messages) -> None:
            counts[0] += len(events)
            counts[1] += sum(event["order_id"] for event in events)

        worker = Worker(groups=[group])
        worker.register()
        return worker

    def _work(self, worker: Worker) -> None:
        while not self.stop.is_set():
            if not worker.run_once():
                time.sleep(0.01)
        _exhaust(worker)

    def _maintain(self, _: None) -> None:
        run = log_lock.run

        def timed(*arguments, **options) -> None:
            began = time.perf_counter()
            run(*arguments, **options)
            self.removing.append((began, time.perf_counter()))

        log_lock.run = timed
        try:
            while not self.stop.wait(0.5):
                maintenance.maintain("default")
                self.sizes.append(sum(each.bytes for each in segments.list_segments()))
        finally:
            log_lock.run = run

    def _print(self) -> None:
        total = self.messages // 2 * 2
        wanted = [total, total * (total + 1) // 2]
        during = [
            took
            for began, took in self.times
            if any(a <= began + took and began <= b for a, b in self.removing)
        ]
        besides = [took for _, took in self.times if took not in set(during)]
        dead = harness.execute(
            "SELECT COALESCE(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables "
            "WHERE relname LIKE 'outbox_message%'"
        )[0][0]
        p99 = [1000 * sorted(times)[int(0.99 * len(times))] for times in (during, besides)]
        rows = [
            ["log at most", f"{max(self.sizes) / 1e6:,.0f} MB", "bounded"],
            ["log at the end", f"{self.sizes[-1] / 1e6:,.0f} MB", ""],
            ["dead rows in the log", f"{dead}", "0"],
            ["p99 of a publisher during removals", f"{p99[0]:.1f} ms", ""],
            ["p99 besides", f"{p99[1]:.1f} ms", ""],
            ["ratio", *harness.against(3, p99[0] / p99[1], most=True)],
            [
                "groups that did not see every message once",
                str(sum(counts != wanted for counts in self.seen.values())),
                "0",
            ],
        ]
        harness.show(f"Retention: {total:,} messages, three groups", ["", "figure", "goal"], rows)
        connection.close()
