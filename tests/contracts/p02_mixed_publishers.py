"""Promise 2 with publishers of every kind at once: no group of any channel passes a message over.

ORM, SQL with savepoints, functions that name their channel, COPY, prepared transactions (ended in
another session as well), captured tables, a role with the rights of a publisher. The same load is
run with one part of the protocol broken at a time, and must find what is lost.
"""

from __future__ import annotations

import collections
import threading
import time
from functools import partial

import pytest
from django.db import connection

import outbox
from outbox.consuming.notifications import Wakeups
from outbox.models import Message
from outbox.operations.grants import grants
from outbox.worker import Worker
from tests.library.models import Counter
from tests.shop.consumers import record_batch
from tests.support.amounts import amount
from tests.support.harness import backend, execute, floors, handled, value
from tests.support.mixed_publishing import (
    ANNOUNCED,
    CAPTURED,
    CHANNELS,
    KEYS,
    PUBLISHERS,
    RAW,
    Session,
    by_statements,
    can_prepare,
    prepared,
    publish_mixed,
    stored_numbers,
)
from tests.support.processes import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(600)]

TRANSACTIONS = amount(25, 300)
"""Of each publisher."""
WORKERS = 2
ROUNDS = 10
"""Loads after which a broken protocol counts as not found."""
GROUPS = {
    "one": ([*CHANNELS, CAPTURED], {}),
    "four": (["north", "south"], {"parallelism": 4}),
    "last": (["west"], {}),
    "leases": (["north", CAPTURED], {"delivery": "at_least_once", "parallelism": 2}),
}
POLL = 600.0
"""Seconds: longer than any test waits, so that a lost wake-up fails it."""

LATE = [
    (
        "outbox_take_floor()",
        "WHILE NOT pg_try_advisory_xact_lock_shared(outbox_floor_key(channel, floor)) LOOP",
        "WHILE false LOOP",
    ),
    (
        "outbox_check_positions_and_notify()",
        "    IF lowest IS NULL THEN",
        "    PERFORM pg_advisory_xact_lock_shared(outbox_floor_key(a.channel, highest))"
        " FROM (SELECT DISTINCT channel FROM appended) AS a;\n    IF lowest IS NULL THEN",
    ),
]
BREAKS = {
    "a floor that is taken after nextval": LATE,
    "an AFTER trigger that does not look at the channel": [
        ("outbox_check_positions_and_notify()", "IF floor IS NULL THEN", "IF false THEN")
    ],
    "a general floor that is ignored": [
        (
            "outbox_horizons_v1(text[],integer)",
            "LEAST(last_position, of_every_channel, lowest.floor)",
            "LEAST(last_position, lowest.floor)",
        )
    ],
}


@pytest.fixture
def groups(declare_group):
    """Groups over one and over several channels, with one range and with several, of both modes."""
    declared = []
    for name, (channels, options) in GROUPS.items():
        group = declare_group(name, *channels, start="earliest", **options)
        group.batch_handler("Item")(record_batch(name))
        if CAPTURED in channels:
            group.batch_handler(outbox.Change[Counter])(record_batch(name))
        declared.append(group)
    Worker(declared).register()
    return declared


@pytest.fixture
def publisher_role(connect):
    """A role with the rights of a publisher and no others."""
    session, name = connect(), "outbox mixed publisher"
    execute(session, f'CREATE ROLE "{name}"')
    for statement in grants("publisher", name):
        execute(session, statement)
    yield name
    execute(session, f'DROP OWNED BY "{name}"')
    execute(session, f'DROP ROLE "{name}"')


@pytest.fixture
def many_locks(connect):
    """Two thousand foreign locks make each look at pg_locks slow, which widens every race around
    it."""
    value(
        connect(),
        "SELECT count(pg_advisory_lock_shared(7002, number)) FROM generate_series(1, 2000) AS number",
    )


@pytest.fixture
def replace_functions(connect):
    """Replace text in functions of the log until the test ends."""
    session, originals = connect(), {}

    def replace(function, said, broken):
        definition = value(session, "SELECT pg_get_functiondef(%s::regprocedure)", function)
        originals.setdefault(function, definition)
        assert said in definition
        execute(session, definition.replace(said, broken))

    yield replace
    for definition in originals.values():
        execute(session, definition)


@pytest.fixture
def run_load(connect, background, groups, publisher_role, many_locks):
    """Let all publishers overlap while workers compete; return the numbers that were committed."""
    seeds = iter(range(1_000_000))

    def run():
        committed, finished = [], threading.Event()
        roles = [(publisher, None) for publisher in PUBLISHERS]
        roles.append((by_statements, publisher_role))
        if not can_prepare(connection):
            roles = [pair for pair in roles if pair[0] is not prepared]
        workers = [background(work_until, groups, finished) for _ in range(WORKERS)]
        publishers = [
            background(
                publish_mixed, Session(connect, role), each, next(seeds), TRANSACTIONS, committed
            )
            for each, role in roles
        ]
        try:
            for publisher in publishers:
                publisher.result(400)
        finally:
            finished.set()
        for worker in workers:
            worker.result()
        Worker(groups).drain()
        return committed

    return run


def work_until(groups, finished):
    """Compete for the ranges of all groups until the publishers are done."""
    worker = Worker(groups)
    while not finished.is_set():
        if worker.run_once() is None:
            finished.wait(0.001)


def faults(group):
    """How many messages of its channels a group lost, and how many it handled again."""
    channels, _ = GROUPS[group]
    log = Message.objects.filter(channel__in=channels).values_list("position", flat=True)
    counts = collections.Counter(handled(group))
    return {
        "lost": len(set(log) - set(counts)),
        "doubled": sum(count - 1 for count in counts.values()),
    }


def test_mixed_publishers_lose_nothing_to_groups_of_any_channel(run_load, record_property, capsys):
    """Each message that any of them committed is in the log, and every group of its channel handles
    it once and in the order of its key."""
    committed = run_load()
    found = {name: faults(name) for name in GROUPS}
    captured = Message.objects.filter(channel=CAPTURED).count()
    numbers = {"published": len(committed), "captured": captured, **found}
    record_property("numbers", numbers)
    with capsys.disabled():
        print(f"\nmixed publishers: {numbers}")

    assert sorted(stored_numbers(connection)) == sorted(committed)
    assert captured > 0
    assert found == {name: {"lost": 0, "doubled": 0} for name in GROUPS}
    for name in GROUPS:
        for channel in GROUPS[name][0]:
            for key in range(KEYS):
                positions = handled(name, channel=channel, key=str(key))
                assert positions == sorted(positions)


@pytest.mark.parametrize("broken", BREAKS)
def test_the_load_finds(run_load, replace_functions, broken):
    """With one part of the protocol broken some group loses a message, so the load above can fail."""
    for replacement in BREAKS[broken]:
        replace_functions(*replacement)
    for _ in range(ROUNDS):
        run_load()
        lost = sum(faults(name)["lost"] for name in GROUPS)
        if lost:
            break

    assert lost > 0


@pytest.fixture
def sleeping_worker(declare_group, background):
    """A worker of the channel south that nothing but a NOTIFY wakes."""
    group = declare_group("sleepers", "south", start="earliest")
    group.batch_handler("Item")(record_batch("sleepers"))
    worker = Worker([group], wakeups=Wakeups([group], "default", poll_interval=POLL))
    worker.register()
    thread = background(worker.run)
    yield
    worker.stop()
    thread.result()


def latencies(session, count):
    """Publish in the channel south, each message when the one before was handled; the seconds."""
    seconds = []
    for number in range(count):
        position = value(session, ANNOUNCED, "south", str(number), number)
        began = time.monotonic()
        wait_until(partial(is_handled, position))
        seconds.append(time.monotonic() - began)
    return sorted(seconds)


def is_handled(position):
    return position in handled("sleepers")


def test_an_open_transaction_of_another_channel_delays_no_handler(
    connect, sleeping_worker, record_property, capsys
):
    """While a transaction that published in the channel north stays open, a sleeping worker of the
    channel south is woken for each message as before, although it does not poll."""
    session, importer = connect(), connect()
    before = latencies(session, 20)
    execute(importer, "BEGIN")
    value(importer, ANNOUNCED, "north", "1", 0)
    held = floors(session, backend(importer))
    meanwhile = latencies(session, 20)
    execute(importer, "COMMIT")
    milliseconds = {"alone": before[10] * 1000, "beside": meanwhile[10] * 1000}
    record_property("milliseconds", milliseconds)
    with capsys.disabled():
        print(f"\ncommit to handled, medians in ms: {milliseconds}")

    assert len(held) == 1
    assert len(meanwhile) == len(before)


def test_an_open_raw_insert_delays_every_channel_until_it_ends(connect, sleeping_worker):
    """A raw INSERT names no channel: a message of any channel behind it waits for its end, and not
    longer."""
    session, importer = connect(), connect()
    latencies(session, 1)
    execute(importer, "BEGIN")
    execute(importer, RAW, "north", "1", 0)
    horizons = "SELECT horizons FROM outbox_horizons_v1(%s)"
    held = value(session, horizons, [*CHANNELS, CAPTURED])
    behind = value(session, ANNOUNCED, "south", "1", 1)
    held_behind = value(session, horizons, [*CHANNELS, CAPTURED])
    handled_meanwhile = is_handled(behind)
    execute(importer, "COMMIT")

    wait_until(partial(is_handled, behind))
    assert not handled_meanwhile
    assert held_behind == held
    assert all(horizon < behind for horizon in held)
