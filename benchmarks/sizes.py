"""What grows: segments, ranges of a group, channels of a group, groups of a worker, idle workers.

Each line compares one size with the size 1 in the same run, or states the time that it takes.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

from django.db import connections, transaction

import outbox
from benchmarks import harness, processes
from benchmarks.events import CHANNEL, orders
from outbox.retention import segments
from outbox.testing import isolated_groups
from outbox.worker import Worker

Row = list[str]
SLEEPERS = 50
COLUMNS = ["", "large", "small", "ratio or ms", "goal"]


def run(*, quick: bool) -> None:
    """Print a line for each size that the goals name."""
    turns = 3 if quick else 9
    rows = [
        *_segments(turns),
        *_ranges(turns, 5_000 if quick else 50_000),
        *_channels(turns),
        _groups(turns),
        *_idle_workers(turns),
    ]
    harness.show("Sizes", COLUMNS, rows, " One worker in this process, handlers that do nothing.")


def _segments(turns: int) -> list[Row]:
    figures = harness.alternate(
        {"1": partial(_with_segments, 1), "500": partial(_with_segments, 500)}, min(turns, 5)
    )
    of = {
        (count, what): [turn[what] for turn in figures[count]]
        for count in figures
        for what in ("consume", "publish", "first")
    }
    rows = [
        [
            f"500 segments against 1: {what}",
            *(harness.per_second(of[count, what]) for count in ("500", "1")),
            *harness.against(goal, harness.ratio(of["500", what], of["1", what])),
        ]
        for what, goal in (("consume", 0.9), ("publish", 0.95))
    ]
    first, small = (statistics.median(of[count, "first"]) for count in ("500", "1"))
    rows.append(_times("500 segments: first claim of a session", first, 50, small))
    _make_segments(1, 1_000)
    return rows


def _with_segments(count: int) -> dict[str, float]:
    """Return the rates with some segments, and the milliseconds of a session's first claim."""
    _make_segments(count, 1_000)
    return {
        "publish": harness.rate(500, _publish_one_by_one),
        "consume": _consume(20_000),
        "first": _first_claim(),
    }


def _make_segments(count: int, size: int) -> None:
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


def _publish_one_by_one(count: int) -> None:
    """Publish messages, one a transaction."""
    for event in orders(count):
        with transaction.atomic():
            outbox.publish(event)


def _consume(count: int) -> float:
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


def _first_claim() -> float:
    """Return the milliseconds in which a new session handles its first message."""
    with _consumer([CHANNEL]) as worker:
        _publish_one_by_one(1)
        connections["default"].close()
        connections["default"].ensure_connection()
        worker.register()
        began = time.perf_counter()
        while worker.handled == 0:
            worker.run_once()
        return (time.perf_counter() - began) * 1e3


@contextlib.contextmanager
def _consumer(channels: list[str], groups: int = 1, ranges: int = 1) -> Iterator[Worker]:
    """Give a worker of new groups that begin at the present end of the log."""
    with isolated_groups():
        made = []
        for number in range(groups):
            name = f"sizes-{time.monotonic_ns()}-{number}"
            group = outbox.ConsumerGroup(
                name, channels, start="latest", parallelism=ranges, on_unknown="skip"
            )
            group.handler("OrderPlaced")(lambda event, message: None)
            made.append(group)
        worker = Worker(groups=made)
        worker.register()
        yield worker
        harness.execute("TRUNCATE outbox_cursor")


def _handle(worker: Worker, count: int) -> None:
    """Let a worker handle so many messages."""
    end = worker.handled + count
    while worker.handled < end:
        if worker.run_once() is None and worker.handled < end:
            time.sleep(0.001)


def _publish(count: int) -> None:
    for first in range(0, count, 10_000):
        with transaction.atomic():
            outbox.publish_many(orders(min(10_000, count - first), 1_000_000 + first))


def _milliseconds(worker: Worker, turns: int, count: int, publish: Callable[[], None]) -> float:
    """Return the median time from a publish to the end of what is to be handled."""
    spent = []
    for _ in range(turns + 1):
        publish()
        began = time.perf_counter()
        _handle(worker, count)
        spent.append((time.perf_counter() - began) * 1e3)
    return statistics.median(spent[1:])


def _ranges(turns: int, count: int) -> list[Row]:
    rates: dict[int, list[float]] = {1: [], 1024: []}
    soon: dict[int, float] = {}
    for ranges in (1, 1024):
        harness.empty_log()
        with _consumer([CHANNEL], ranges=ranges) as worker:
            _publish(1_000)
            _handle(worker, 1_000)
            for _ in range(turns):
                _publish(count)
                rates[ranges].append(harness.rate(count, partial(_handle, worker)))
            soon[ranges] = _milliseconds(worker, turns, 500, lambda: _publish(500))
    return [
        _rates("1,024 ranges against 1: consume", rates[1024], rates[1], 0.5),
        _times("1,024 ranges: 500 messages over all of them", soon[1024], 100, soon[1]),
    ]


def _channels(turns: int) -> list[Row]:
    """Measure a claim while many channels have something, and one message after a pause."""
    spent: dict[int, tuple[float, float]] = {}
    for count in (1, 2_000):
        harness.empty_log()
        names = [f"channel-{number}" for number in range(count)]
        with _consumer(names) as worker:
            worker.run_once()
            several = _milliseconds(worker, turns, 200, partial(_publish_in, names, 200))
            single = _milliseconds(worker, turns, 1, partial(_publish_in, names, 1))
            spent[count] = several / min(200, count), single
    (many, soon), (small, small_soon) = spent[2_000], spent[1]
    return [
        _times("2,000 channels: a claim, 200 channels with a message", many, 3, small),
        _times("2,000 channels: one message in one of them", soon, 3, small_soon),
    ]


def _publish_in(channels: list[str], count: int) -> None:
    """Publish messages, each in another channel."""
    with transaction.atomic():
        for number in range(count):
            name = channels[number * 7 % len(channels)]
            outbox.publish_raw(name, "OrderPlaced", {"number": number})


def _groups(turns: int) -> Row:
    spent = {}
    for count in (1, 500):
        harness.empty_log()
        with _consumer([CHANNEL], groups=count) as worker:
            worker.run_once()
            spent[count] = _milliseconds(worker, turns, count, lambda: _publish_one_by_one(1))
    return _times("500 groups: one message until all have it", spent[500], 500, spent[1])


def _idle_workers(turns: int) -> list[Row]:
    """Count how many of 50 sleeping workers run a statement because of one message."""
    harness.empty_log()
    woken = []
    with isolated_groups(), contextlib.ExitStack() as stack:
        group = outbox.ConsumerGroup("idle", [CHANNEL], start="latest", on_unknown="skip")
        group.handler("OrderPlaced")(lambda event, message: None)
        for _ in range(SLEEPERS):
            stack.enter_context(processes.beside(processes.work, group, True))
        while _sleeping() < SLEEPERS:
            time.sleep(0.1)
        for _ in range(turns):
            time.sleep(1)
            before = _activity()
            _publish_one_by_one(1)
            time.sleep(1)
            woken.append(sum(before.get(pid) != at for pid, at in _activity().items()))
    return [_times("50 idle workers, one message: sessions woken", statistics.median(woken), 5)]


def _sleeping() -> int:
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"
    return int(harness.execute(held)[0][0])


def _activity() -> dict[int, object]:
    """Return when each worker's session ran its last statement."""
    seen = """
        SELECT pid, query_start FROM pg_stat_activity WHERE application_name LIKE 'outbox:%%'
    """
    return dict(harness.execute(seen, []))


def _rates(what: str, large: list[float], small: list[float], goal: float) -> Row:
    value = statistics.median(large) / statistics.median(small)
    return [
        what,
        harness.per_second(large),
        harness.per_second(small),
        *harness.against(goal, value),
    ]


def _times(what: str, large: float, goal: float, small: float | None = None) -> Row:
    beside = "" if small is None else f"{small:,.2f}"
    return [what, f"{large:,.2f}", beside, *harness.against(goal, large, most=True)]
