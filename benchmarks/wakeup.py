"""How soon a handler begins after a commit, against a bare LISTEN and NOTIFY.

The bare one is measured both ways: a session sends a NOTIFY, another one hears it and answers
with a NOTIFY, which the first one hears.
"""

from __future__ import annotations

import itertools
import os
import select
import statistics
import time
from collections.abc import Callable
from functools import partial

from django.db import transaction

import outbox
from benchmarks import consumers, harness
from benchmarks.events import orders
from benchmarks.processes import beside, work
from outbox import database

PING, ANSWER = "ping", "answer"
ALONE = 0.02
STEADY = 0.002
STAMP = 8


def run(*, quick: bool) -> None:
    """Print the latency of single messages on an idle system, and under a steady stream."""
    harness.empty_log()
    stamps, bare_stamps = os.pipe(), os.pipe()
    consumers.stamp_into(stamps[1])
    turns, alone, steady = (3, 20, 200) if quick else (15, 50, 500)
    rows = []
    with beside(work, consumers.stamp, True), beside(_answer, bare_stamps[1]):
        ping = _Ping(bare_stamps[0])
        warm_up(publish_one, stamps[0])
        warm_up(ping.send, bare_stamps[0])
        ping.ear.wait()
        for title, gap, count, goal in (
            ("single messages, 20 ms apart", ALONE, alone, 2.5),
            ("500 a second", STEADY, steady, None),
        ):
            figures = harness.alternate(
                {
                    "message": partial(latencies, count, gap, stamps[0]),
                    "bare": partial(ping.latencies, count, gap),
                },
                turns,
            )
            rows.append(_row(title, figures["message"], figures["bare"], goal))
    harness.show(
        "Wake-up",
        [
            "",
            "message p50",
            "p99",
            "NOTIFY p50",
            "p99",
            "both ways p50",
            "p99",
            "ratio to it",
            "goal",
        ],
        rows,
        " From sending COMMIT to the first line of the handler in another process, which was idle; "
        "bare: the NOTIFY of a transaction that does nothing else, heard in another process, and "
        "there and back.",
    )


def _row(
    title: str,
    messages: list[list[float]],
    bare: list[tuple[list[float], list[float]]],
    goal: float | None,
) -> list[str]:
    one_way, both_ways = ([turn[way] for turn in bare] for way in (0, 1))
    cells = [title]
    for turns in (messages, one_way, both_ways):
        percentiles = statistics.quantiles(itertools.chain(*turns), n=100)
        cells += [f"{percentiles[49]:.2f} ms", f"{percentiles[98]:.2f} ms"]
    medians = [[statistics.median(turn) for turn in turns] for turns in (messages, both_ways)]
    return cells + list(harness.against(goal, harness.ratio(*medians), most=True))


def publish_one() -> int:
    [event] = orders(1)
    with transaction.atomic():
        outbox.publish(event)
        return time.monotonic_ns()


class _Ping:
    """A session that sends a NOTIFY and hears the answer to it."""

    def __init__(self, stamps: int) -> None:
        self.stamps = stamps
        self.ear = _Ear(ANSWER)

    def send(self) -> int:
        """Send a NOTIFY and return when its COMMIT was sent."""
        with transaction.atomic():
            harness.execute(f"NOTIFY {PING}")
            return time.monotonic_ns()

    def latencies(self, count: int, gap: float) -> tuple[list[float], list[float]]:
        """Return the milliseconds that `count` NOTIFYs took there, and there and back."""
        there, back = [], []
        for _ in harness.paced(count, gap):
            sent = self.send()
            self.ear.wait()
            back.append((time.monotonic_ns() - sent) / 1e6)
            there.append((int.from_bytes(os.read(self.stamps, STAMP)) - sent) / 1e6)
        return there, back


class _Ear:
    """A session of the bare driver that listens."""

    def __init__(self, signal: str) -> None:
        self.raw = harness.open_session()
        self.heard = database.heard_notifications(self.raw)
        self.raw.cursor().execute(f"LISTEN {signal}")

    def wait(self) -> None:
        """Wait until a notification comes."""
        while not database.take_notifications(self.raw, self.heard):
            select.select([self.raw.fileno()], [], [])


def _answer(stamps: int) -> None:
    ear = _Ear(PING)
    mouth = ear.raw.cursor()
    while True:
        ear.wait()
        os.write(stamps, time.monotonic_ns().to_bytes(STAMP))
        mouth.execute(f"NOTIFY {ANSWER}")


def warm_up(send: Callable[[], int], stamps: int) -> None:
    while not select.select([stamps], [], [], 0.5)[0]:
        send()
    while select.select([stamps], [], [], 0.5)[0]:
        os.read(stamps, STAMP)


def latencies(count: int, gap: float, stamps: int) -> list[float]:
    """Return the milliseconds from the COMMIT of each message to the handler's stamp."""
    sent = [publish_one() for _ in harness.paced(count, gap)]
    came = [int.from_bytes(os.read(stamps, STAMP)) for _ in sent]
    return [(stamp - start) / 1e6 for start, stamp in zip(sent, came, strict=True)]
