"""Many publishers with durable commits and one worker, with and without the signal."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import NamedTuple

from django.db import connection, transaction

import outbox
from benchmarks import consumers, harness
from benchmarks.events import CHANNEL, OrderPlaced, orders
from benchmarks.processes import beside, fork, work
from outbox import database, encoding
from outbox.messages import draft_of
from outbox.sql import statement

ALWAYS = """
    CREATE OR REPLACE FUNCTION outbox_check_positions_and_notify() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_notify(outbox_signal_name(channel), '')
        FROM (SELECT DISTINCT channel FROM appended) AS touched;
        RETURN NULL;
    END
    $$
"""
TRIGGER = (
    "SELECT tgname FROM pg_trigger WHERE tgfoid = 'outbox_check_positions_and_notify'::regproc"
)
INSTALLED = "SELECT pg_get_functiondef('outbox_check_positions_and_notify'::regproc)"
SIGNAL_NAME = "SELECT outbox_signal_name(%s)"
HANDLED = "SELECT processed FROM outbox_cursor"
LAST = "SELECT outbox_last_position()"
NOTE = (
    " A message a transaction, one worker. polling: no signal trigger, and the worker polls; "
    "always: a NOTIFY in each transaction. handled: the part that the worker had handled when the "
    "publishers stopped. NOTIFYs: for 1,000 messages."
)
Publish = Callable[[OrderPlaced], Callable[[], None]]

WARM_UP = 0.5
"""Seconds until the worker is awake and the publishers are in step."""
VARIANTS = ("ours", "polling", "always")

COLUMNS = ["publishers", "ours", "handled", "NOTIFYs", "polling", "handled", "ratio", "goal"]
COLUMNS += ["always", "NOTIFYs", "ours to always"]


class Figures(NamedTuple):
    """What one run showed."""

    rate: float
    """Messages per second."""
    handled: float
    """The part of them that the worker had handled when the publishers stopped."""
    notifications: float
    """NOTIFYs per 1,000 messages, counted by a session that listens too."""


def run(*, quick: bool) -> None:
    """Print the rates of 16 and 32 publishers, as the disk is and with slow flushes."""
    seconds, turns = (1.0, 1) if quick else (2.0, 3)
    rows = []
    try:
        for title, delay, siblings in (("disk as it is", 0, 5), ("flushes + 2 ms", 2000, 0)):
            harness.set_options(
                synchronous_commit="on", commit_delay=str(delay), commit_siblings=str(siblings)
            )
            for how, publish, count, goal in (
                ("publish()", _by_publish, 16, 0.85),
                ("publish()", _by_publish, 32, 0.85),
                ("bare INSERT", _by_insert, 16, None),
                ("bare INSERT", _by_insert, 32, None),
            ):
                variants = {
                    name: partial(_measure, name, publish, count, seconds) for name in VARIANTS
                }
                figures = harness.alternate(variants, turns)
                rows.append(_row(f"{count} x {how}, {title}", figures, goal))
        harness.show("Publishers", COLUMNS, rows, NOTE)
    finally:
        harness.set_options(synchronous_commit="off", commit_delay="0", commit_siblings="5")


def _row(title: str, figures: Mapping[str, Sequence[Figures]], goal: float | None) -> list[str]:
    rates = {name: [each.rate for each in runs] for name, runs in figures.items()}
    handled = {
        name: f"{statistics.median(each.handled for each in runs):.0%}"
        for name, runs in figures.items()
    }
    notifications = {
        name: f"{statistics.median(each.notifications for each in runs):.1f}"
        for name, runs in figures.items()
    }
    return [
        title,
        harness.per_second(rates["ours"]),
        handled["ours"],
        notifications["ours"],
        harness.per_second(rates["polling"]),
        handled["polling"],
        *harness.against(goal, harness.ratio(rates["ours"], rates["polling"])),
        harness.per_second(rates["always"]),
        notifications["always"],
        f"{harness.ratio(rates['ours'], rates['always']):.1f}",
    ]


@contextlib.contextmanager
def _variant(name: str) -> Iterator[None]:
    """Change the signal of this database meanwhile."""
    [[installed]], [[trigger]] = harness.execute(INSTALLED), harness.execute(TRIGGER)
    if name == "polling":
        harness.execute(f'ALTER TABLE outbox_message DISABLE TRIGGER "{trigger}"')
    elif name == "always":
        harness.execute(ALWAYS)
    try:
        yield
    finally:
        harness.execute(f'ALTER TABLE outbox_message ENABLE TRIGGER "{trigger}"')
        harness.execute(installed)


def _measure(variant: str, publish: Publish, count: int, seconds: float) -> Figures:
    harness.empty_log()
    with _variant(variant), beside(work, consumers.look, variant != "polling"):
        while not harness.execute(HANDLED):
            time.sleep(0.01)
        [[first]] = harness.execute(LAST)
        published = fork.Array("q", count, lock=False)
        start = fork.Barrier(count + 1)
        connection.close()
        processes = [
            fork.Process(
                target=_publish_for, args=(publish, published, index, start, seconds), daemon=True
            )
            for index in range(count)
        ]
        for process in processes:
            process.start()
        notifications = _count_notifications(start, seconds)
        for process in processes:
            process.join()
        [[last]], [[handled]] = harness.execute(LAST), harness.execute(HANDLED)
    total = sum(published)
    return Figures(total / seconds, handled / (last - first), 1000 * notifications / total)


def _publish_for(
    publish: Publish,
    published: MutableSequence[int],
    index: int,
    start: Barrier,
    seconds: float,
) -> None:
    """Publish one message after the other; count them in published[index] after the warm-up."""
    connection.close()
    publish_next = publish(orders(1, index)[0])
    start.wait()
    begin = time.monotonic() + WARM_UP
    while True:
        publish_next()
        now = time.monotonic()
        if now >= begin + seconds:
            return
        published[index] += now >= begin


def _by_publish(event: OrderPlaced) -> Callable[[], None]:
    """Publish as an application does."""
    connection.ensure_connection()

    def publish() -> None:
        with transaction.atomic():
            outbox.publish(event)

    return publish


def _by_insert(event: OrderPlaced) -> Callable[[], None]:
    """Do the least that a publisher can do: the INSERT of `publish()` over a bare connection."""
    draft = draft_of(event, None)
    parameters = {
        "channel": draft.channel,
        "key": draft.key,
        "type": draft.type,
        "payload": encoding.encode(draft.payload, draft.type),
        "headers": "{}",
    }
    cursor = harness.open_session().cursor()
    return lambda: cursor.execute(statement("append_message"), parameters)


def _count_notifications(start: Barrier, seconds: float) -> int:
    """Let the publishers start; return how many NOTIFYs came in the seconds after the warm-up."""
    raw = harness.open_session()
    heard = database.heard_notifications(raw)
    raw.cursor().execute(f"LISTEN {harness.execute(SIGNAL_NAME, [CHANNEL])[0][0]}")
    start.wait()
    time.sleep(WARM_UP)
    database.take_notifications(raw, heard)
    count = 0
    for _ in harness.paced(10, seconds / 10):
        count += database.take_notifications(raw, heard)
    time.sleep(seconds / 10)
    count += database.take_notifications(raw, heard)
    raw.close()
    return count
