"""Streams: appends beside plain publishing, and folding an aggregate from its events."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from decimal import Decimal

from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

import outbox
from benchmarks import harness
from benchmarks.events import OrderPlaced, Paid
from benchmarks.models import Balance

PUBLISHERS = 8
EVENTS = 1000
_fresh = itertools.count(1)


def run(*, quick: bool) -> None:
    """Print the ratio of appends, the queries of a load, and the rate of a fold."""
    harness.empty_log()
    count, turns = (100, 3) if quick else (250, 7)
    figures = harness.alternate(
        {
            "append": lambda: _together(count, _append),
            "publish": lambda: _together(count, _publish),
        },
        turns,
    )
    with transaction.atomic():
        for _ in range(EVENTS):
            outbox.publish(Paid(account="folded", amount=Decimal(1)))
    Balance.rebuild("folded")
    with CaptureQueriesContext(connections["default"]) as load:
        Balance.objects.get(pk="folded")
    folds = [_fold() for _ in range(3 if quick else 9)]
    harness.show(
        "Streams",
        ["", "figure", "beside", "ratio", "goal"],
        [
            [
                f"{PUBLISHERS} publishers, one message a transaction, a stream each: appends "
                "and plain messages",
                harness.per_second(figures["append"]),
                harness.per_second(figures["publish"]),
                *harness.against(0.85, harness.ratio(figures["append"], figures["publish"])),
            ],
            [
                "queries that load an aggregate",
                str(len(load)),
                "",
                *harness.against(1, len(load), most=True),
            ],
            [
                f"{EVENTS:,} events folded: read, decoded, applied",
                harness.per_second(folds),
                "",
                *harness.against(50_000, sorted(folds)[len(folds) // 2]),
            ],
        ],
        " The publishers are threads of one process.",
    )


def _together(count: int, publish: Callable[[str], None]) -> float:
    """Return messages per second of publishers that begin at once."""
    barrier = threading.Barrier(PUBLISHERS + 1)

    def work(number: int) -> None:
        key = f"{number}-{next(_fresh)}"
        connections["default"].ensure_connection()
        barrier.wait()
        for _ in range(count):
            with transaction.atomic():
                publish(key)
        connections.close_all()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(PUBLISHERS)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return PUBLISHERS * count / (time.perf_counter() - began)


def _append(key: str) -> None:
    outbox.publish(Paid(account=key, amount=Decimal(1)))


def _publish(key: str) -> None:
    outbox.publish(OrderPlaced(1, key, Decimal(1), True, ""))


def _fold() -> float:
    return harness.rate(EVENTS, lambda count: _folded(count))


def _folded(count: int) -> None:
    assert Balance.as_of("folded", version=count).amount == count
