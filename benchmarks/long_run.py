"""A long run: publishers, three groups and maintenance side by side, in a process each.

Every message is published as fast as it goes, in a log of small segments, and the rules remove it a
moment after the groups have read it. Each 200th goes to a channel that is kept for longer, so that
each segment is rewritten first and dropped later.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from django.db import connections, transaction
from django.test import override_settings

import outbox
from benchmarks import harness
from benchmarks.events import CHANNEL, orders
from outbox.retention import maintenance, segments
from outbox.testing import isolated_groups
from outbox.worker import Worker

SEGMENT = 20_000
"""Positions in a segment."""
BATCH = 200
"""Messages of a publisher between two whose time is taken."""
BEHIND = 300_000
"""Publishers wait while a group is so many messages behind, so that the rules bound the log."""
KEPT = "kept"
RULES = {"KEEP": "2 seconds", "CHANNELS": {KEPT: {"keep": "20 seconds"}}}
GROUPS = ("one", "two", "three")
PUBLISHERS = 2
fork = multiprocessing.get_context("fork")
Window = tuple[str, float, float]
"""What maintenance did, from when to when."""


class LongRun:
    """The run, and what its processes tell."""

    def __init__(self, messages: int) -> None:
        self.messages = messages // (PUBLISHERS * BATCH) * PUBLISHERS * BATCH
        self.journals = {name: fork.RawArray("B", self.messages + 1) for name in GROUPS}
        """Group -> how often each message was handled, by its number."""
        self.handled = fork.RawArray("q", len(GROUPS))
        self.published = fork.RawArray("q", PUBLISHERS)
        self.is_over, self.results = fork.Event(), fork.Queue()
        self.windows: list[Window] = []
        self.sizes: list[int] = []
        self.most_behind = self.most_dead = 0

    def show(self) -> None:
        """Run it and print the figures."""
        for each in segments.list_segments():
            if each.lower is not None:
                harness.execute(f"DROP TABLE {each.name}")
        harness.empty_log()
        harness.execute("ALTER SEQUENCE outbox_message_position_seq RESTART WITH 1")
        for number in range(3):
            segments._create(max(1, number * SEGMENT), (number + 1) * SEGMENT, "default")
        began = time.perf_counter()
        with isolated_groups(empty=True), override_settings(OUTBOX=RULES):
            times, failed = self._run()
        self._print(times, failed, time.perf_counter() - began)

    def _run(self) -> tuple[list[tuple[float, float]], list[str]]:
        workers = [self._worker(number) for number in range(len(GROUPS))]
        connections.close_all()
        publishers = [self._start(self._publish, number) for number in range(PUBLISHERS)]
        others = [self._start(self._work, worker) for worker in workers]
        stop = threading.Event()
        maintaining = threading.Thread(target=self._maintain, args=(stop,))
        maintaining.start()
        found = [self.results.get() for _ in publishers]
        self.is_over.set()
        found += [self.results.get() for _ in others]
        for process in (*publishers, *others):
            process.join()
        stop.set()
        maintaining.join()
        return [each for times, _ in found for each in times], [text for _, text in found if text]

    def _start(self, work: Callable[[Any], list[tuple[float, float]]], argument: Any) -> Any:
        def guarded() -> None:
            times, text = [], ""
            try:
                times = work(argument)
            except BaseException as error:
                text = repr(error)
                self.is_over.set()
            self.results.put((times, text))

        process = fork.Process(target=guarded)
        process.start()
        return process

    def _publish(self, number: int) -> list[tuple[float, float]]:
        """Publish a part of the numbers; return when each single one began and how long it took."""
        harness.execute("SET lock_timeout = '1s'")
        part, times = self.messages // PUBLISHERS, []
        for first in range(1 + number * part, 1 + (number + 1) * part, BATCH):
            with transaction.atomic():
                outbox.publish_many(orders(BATCH - 1, first))
            (last,) = orders(1, first + BATCH - 1)
            began = time.perf_counter()
            with transaction.atomic():
                outbox.publish_raw(KEPT, "OrderKept", {"order_id": last.order_id})
            times.append((began, time.perf_counter() - began))
            self.published[number] += BATCH
            while sum(self.published) - min(self.handled) > BEHIND and not self.is_over.is_set():
                time.sleep(0.01)
        return times

    def _worker(self, number: int) -> Worker:
        group = outbox.ConsumerGroup(GROUPS[number], [CHANNEL, KEPT])
        journal = self.journals[group.name]

        def note(events: Any, messages: Any) -> None:
            for message in messages:
                journal[message.payload["order_id"]] += 1
            self.handled[number] += len(messages)

        group.batch_handler("OrderPlaced")(note)
        group.batch_handler("OrderKept")(note)
        worker = Worker(groups=[group])
        worker.register()
        return worker

    def _work(self, worker: Worker) -> list[tuple[float, float]]:
        while worker.run_once() or not self.is_over.wait(0.005):
            pass
        while worker.run_once():
            pass
        return []

    def _maintain(self, stop: threading.Event) -> None:
        try:
            with self._timed():
                while not stop.wait(0.2):
                    maintenance.maintain("default")
                    self.sizes.append(sum(each.bytes for each in segments.list_segments()))
                    behind = sum(self.published) - min(self.handled)
                    self.most_behind = max(self.most_behind, behind)
                    self.most_dead = max(self.most_dead, dead_rows())
        finally:
            connections.close_all()

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Note when segments are created, rewritten and dropped, from the first statement on."""
        create, remove = segments._create, maintenance.remove

        def create_timed(*arguments: Any) -> None:
            began = time.perf_counter()
            create(*arguments)
            self.windows.append(("create", began, time.perf_counter()))

        def remove_timed(removal: Any, using: str, done: Any, give_up: Any) -> None:
            began, dropped = time.perf_counter(), len(done.dropped)
            remove(removal, using, done, give_up)
            what = "drop" if len(done.dropped) > dropped else "compact"
            self.windows.append((what, began, time.perf_counter()))

        segments._create, maintenance.remove = create_timed, remove_timed
        try:
            yield
        finally:
            segments._create, maintenance.remove = create, remove

    def _print(self, times: list[tuple[float, float]], failed: list[str], took: float) -> None:
        counts = {name: bytes(journal)[1:] for name, journal in self.journals.items()}
        lost = sum(each.count(0) for each in counts.values())
        once = sum(each.count(1) for each in counts.values())
        middle = len(self.sizes) // 2
        first, second = (max(part) / 1e6 for part in (self.sizes[:middle], self.sizes[middle:]))
        during = {what: self._during(times, what) for what in ("create", "compact", "drop")}
        besides = p99([each for began, each in times if not self._is_during(began, each, None)])
        rows = [
            ["published", f"{self.messages / took:,.0f}/s for {took:,.0f} s", ""],
            ["log at most, first half", f"{first:,.0f} MB", "bounded"],
            ["log at most, second half", f"{second:,.0f} MB", "bounded"],
            ["a group behind by at most", f"{self.most_behind:,} messages", ""],
            ["dead rows in the log at most", str(max(self.most_dead, dead_rows())), "0"],
            ["publishers and workers that failed", f"{len(failed)} {' '.join(failed)}", "0"],
            ["messages not handled by a group", str(lost), "0"],
            [
                "messages handled more than once",
                str(len(GROUPS) * self.messages - lost - once),
                "0",
            ],
            ["p99 of a publisher besides", f"{1000 * besides:.1f} ms", ""],
            ["longest publish", f"{1000 * max(each for _, each in times):.1f} ms", ""],
        ]
        for what, found in during.items():
            count = sum(window[0] == what for window in self.windows)
            name = f"p99 during {what} ({count} times, {len(found)} publishes)"
            rows.append([name, f"{1000 * p99(found):.1f} ms", ""])
            if found:
                rows.append(["ratio", *harness.against(3, p99(found) / besides, most=True)])
        title = f"Retention: {self.messages:,} messages, {PUBLISHERS} publishers, three groups"
        harness.show(title, ["", "figure", "goal"], rows)

    def _during(self, times: list[tuple[float, float]], what: str) -> list[float]:
        return [took for began, took in times if self._is_during(began, took, what)]

    def _is_during(self, began: float, took: float, what: str | None) -> bool:
        return any(
            start <= began + took and began <= end
            for kind, start, end in self.windows
            if what in (kind, None)
        )


def dead_rows() -> int:
    """Return how many dead rows the segments have, as the server counts them."""
    rows = harness.execute(
        "SELECT COALESCE(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables "
        "WHERE relname LIKE 'outbox\\_message%'"
    )
    return int(rows[0][0])


def p99(times: list[float]) -> float:
    """Return the time that 99 of 100 do not exceed; 0 without any."""
    return sorted(times)[int(0.99 * len(times))] if times else 0.0
