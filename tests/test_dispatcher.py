"""The optimistic batch: one transaction when all goes well, and nothing twice when it does not."""

from __future__ import annotations

import logging
import threading

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.test import override_settings

import outbox
from outbox.consuming import batch, crashes, handlers
from outbox.worker import Worker
from tests.shop.models import Effect, Order, OrderLine
from tests.support.failing import account
from tests.support.publishing import CHANNEL, publish

pytestmark = pytest.mark.django_db(transaction=True)

LATER = outbox.Retry(max_attempts=0, base=3600, max_delay=3600, jitter=False)
ONCE = outbox.Retry(max_attempts=1)


def keys(count):
    return [str(number) for number in range(count)]


def publish_types(*types):
    with transaction.atomic():
        return [outbox.publish_raw(CHANNEL, each, {"type": each}) for each in types]


class Clock:
    """The clock of batches, which goes only when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    a_clock = Clock()
    monkeypatch.setattr(batch, "time", a_clock)
    monkeypatch.setattr(handlers, "time", a_clock)
    return a_clock


def test_a_batch_is_one_transaction(script):
    """On the happy path all messages of a claim are handled in one transaction, without a savepoint
    each."""
    billing = script()
    positions = publish(*keys(40))
    transactions = set()
    savepoints = []

    def handle(payload, message):
        savepoints.append(len(connection.savepoint_ids))
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id()::text")
            transactions.add(cursor.fetchone())
        billing.handle(payload, message)

    billing.do(handle)

    assert Worker([billing.group]).run_once() == 40
    assert billing.effects() == positions
    assert len(transactions) == 1
    assert set(savepoints) == {1}


def test_neighbours_of_a_type_are_handed_over_together(script):
    """A batch handler gets runs of its type; a message of another type ends the run, so that the order
    of the log is kept."""
    billing = script()
    calls = []
    billing.group._routes.clear()
    billing.group.batch_handler("A")(
        lambda payloads, messages: calls.append(("A", payloads, messages))
    )
    billing.group.batch_handler("B")(
        lambda payloads, messages: calls.append(("B", payloads, messages))
    )
    billing.group.handler("C")(lambda payload, message: calls.append(("C", [payload], [message])))
    billing.group.ignores("X")
    positions = publish_types(*"AABAXABCCA")
    billing.drain()
    order = [message.position for _, _, messages in calls for message in messages]

    assert [(name, len(payloads)) for name, payloads, _ in calls] == [
        *[("A", 2), ("B", 1), ("A", 2), ("B", 1), ("C", 1), ("C", 1), ("A", 1)]
    ]
    assert all(payload == {"type": name} for name, payloads, _ in calls for payload in payloads)
    assert order == [position for position in positions if position != positions[4]]
    assert (billing.cursor().processed, billing.cursor().skipped) == (9, 1)


@override_settings(OUTBOX={"BATCH_SECONDS": 2.0})
def test_a_batch_ends_at_its_time_budget(script, clock):
    """The message during which the time runs out is the last one; the rest is another transaction."""
    billing = script()
    positions = publish(*keys(10))

    def handle(payload, message):
        clock.now += 0.75
        billing.handle(payload, message)

    billing.do(handle)
    worker = Worker([billing.group])
    turns = [worker.run_once() for _ in range(4)]

    assert turns == [3, 3, 3, 1]
    assert billing.effects() == positions
    assert set(billing.times().values()) == {1}
    assert account("scripted") == (10, 10)


@override_settings(OUTBOX={"BATCH_SECONDS": 0.001})
def test_a_batch_makes_progress_whatever_its_time_budget(script, clock):
    """A handler slower than the budget is handled one message a transaction, with failures, too."""
    billing = script(retry=ONCE)
    positions = publish(*keys(6))

    def handle(payload, message):
        clock.now += 5
        billing.handle(payload, message)

    billing.do(handle)
    billing.faults[positions[2]] = ValueError()

    assert billing.drain() == 6
    assert billing.effects() == positions[:2] + positions[3:]
    assert billing.parked() == [(positions[2], "failed")]
    assert set(billing.times().values()) == {1}


def test_the_prefix_before_a_failing_message_is_kept(script):
    """All is rolled back, the prefix is run again and committed; what follows the failing message
    waits until it is settled."""
    billing = script(retry=LATER)
    positions = publish(*keys(10))
    billing.faults[positions[6]] = ValueError("no")
    billing.drain()

    assert billing.effects() == positions[:6]
    assert billing.times() == {**dict.fromkeys(positions[:6], 2), positions[6]: 2}
    assert billing.cursor().position == positions[6] - 1
    assert billing.cursor().processed == 6


def test_a_single_message_needs_no_savepoint(script):
    """Of a batch of one message nothing must be kept: the claim is rolled back with it, and the
    failure is written afterwards."""
    billing = script(retry=LATER)
    publish("gone")
    billing.drain()
    (position,) = publish("a")
    savepoints = []

    def handle(payload, message):
        savepoints.append(len(connection.savepoint_ids))
        billing.handle(payload, message)

    billing.do(handle)
    billing.faults[position] = ValueError("no")
    billing.drain()

    assert savepoints == [0]
    assert position not in billing.effects()
    assert (billing.cursor().attempts, billing.cursor().failed_position) == (1, position)


def test_a_single_failure_behind_a_long_gap_is_counted(script):
    """A range is moved over a long gap of positions in the transaction that handles what comes next;
    a failure there leaves the move alone."""
    billing = script(retry=LATER)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(nextval('outbox_message_position_seq')) FROM generate_series(1, 250000)"
        )
    (position,) = publish("a")
    billing.faults[position] = ValueError("no")
    billing.drain()

    assert billing.times() == {position: 1}
    assert (billing.cursor().attempts, billing.cursor().position) == (1, position - 1)


def test_the_worker_that_handled_a_single_message_meanwhile_is_right(script, monkeypatch):
    """Between the roll-back of a failed message and the record of it another worker may claim the
    range; then there is nothing to record."""
    billing = script(retry=LATER)
    (gone,) = publish("gone")
    billing.drain()
    (position,) = publish("a")
    billing.faults[position] = ValueError("no")
    record_undone = crashes.record_undone

    def be_late(failed):
        billing.faults.clear()
        other = threading.Thread(target=work_elsewhere)
        other.start()
        other.join()
        return record_undone(failed)

    def work_elsewhere():
        Worker([billing.group]).run_once()
        connection.close()

    monkeypatch.setattr(crashes, "record_undone", be_late)
    moved = Worker([billing.group]).run_once()

    assert moved == 0
    assert billing.effects() == [gone, position]
    assert billing.times() == {gone: 1, position: 2}
    assert (billing.cursor().attempts, billing.cursor().processed) == (0, 2)
    assert account("scripted") == (2, 2)


def test_hooks_of_what_was_rolled_back_do_not_run(script):
    """on_commit() of a handler runs once per message that is handled, after the commit."""
    billing = script(retry=LATER)
    positions = publish(*keys(5))
    told = []

    def handle(payload, message):
        transaction.on_commit(lambda: told.append((message.position, connection.in_atomic_block)))
        billing.handle(payload, message)

    billing.do(handle)
    billing.faults[positions[3]] = ValueError("no")
    billing.drain()

    assert told == [(position, False) for position in positions[:3]]


@pytest.mark.parametrize("size", [1, 2, 3, 16, 100])
def test_halving_finds_each_failing_message(script, size):
    """A batch handler that only fails: wherever the message is, it alone is parked, and the others
    are handled once."""
    for place in {0, size // 2, size - 1}:
        name = f"scripted-{place}"
        billing = script(name, batch=True, retry=ONCE, start="latest")
        Worker([billing.group]).register()
        positions = publish(*keys(size))
        billing.faults[positions[place]] = ValueError()
        billing.drain()

        assert billing.parked() == [(positions[place], "failed")]
        assert billing.effects() == [each for each in positions if each != positions[place]]
        assert max(billing.times().values()) <= 1 + max(1, (size - 1).bit_length()) + 1


def test_halving_does_not_call_with_more_than_the_suspects(script):
    """After a failed call the next one is of half its messages, down to one."""
    billing = script(batch=True, retry=ONCE)
    positions = publish(*keys(16))
    calls = []

    def handle(payloads, messages):
        calls.append(len(messages))
        billing.handle_all(payloads, messages)

    billing.do(handle)
    billing.faults[positions[0]] = ValueError()
    billing.drain()

    assert calls[:5] == [16, 8, 4, 2, 1]
    assert sum(calls[5:]) == 15


def test_messages_before_a_failing_run_are_settled_first(script):
    """Messages of other types before the run that fails are kept; those behind it follow."""
    billing = script(retry=ONCE)
    billing.group.batch_handler("Many")(billing.handle_all)
    with transaction.atomic():
        first = outbox.publish_raw(CHANNEL, "Order", {})
        run = [outbox.publish_raw(CHANNEL, "Many", {}) for _ in range(4)]
        last = outbox.publish_raw(CHANNEL, "Order", {})
    billing.faults[run[3]] = ValueError()
    billing.drain()

    assert billing.effects() == [first, *run[:3], last]
    assert billing.times()[last] == 1
    assert billing.parked() == [(run[3], "failed")]


class Number(outbox.Event, channel=CHANNEL):
    number: int


def test_a_payload_that_does_not_fit_spoils_no_batch(script):
    """In the middle of a run of a batch handler only the unreadable message is parked."""
    billing = script(batch=True, retry=ONCE)
    billing.group.batch_handler(Number)(billing.handle_all)
    with transaction.atomic():
        good = [outbox.publish(Number(number)) for number in range(3)]
        bad = outbox.publish_raw(CHANNEL, "Number", {"number": "three"})
        good += [outbox.publish(Number(number)) for number in range(4, 6)]
    billing.drain()

    assert billing.effects() == good
    assert billing.parked() == [(bad, "undecodable")]
    assert account("scripted") == (6, 6)


def test_failed_at_needs_no_halving(script):
    """The handler names the message: it alone is repeated alone."""
    billing = script(batch=True, retry=ONCE)
    positions = publish(*keys(16))
    calls = []

    def handle(payloads, messages):
        calls.append([message.position for message in messages])
        for message in messages:
            if message.position == positions[9]:
                raise outbox.FailedAt(message, "no such order")

    billing.do(handle)
    billing.drain()

    assert calls == [positions, positions[:9], [positions[9]], positions[10:]]
    assert billing.parked() == [(positions[9], "failed")]


def test_failed_at_a_foreign_message_blames_the_run(script):
    """A message that is not among those of the call: then the bad one is found by halving."""
    billing = script(batch=True, retry=ONCE)
    foreign, *positions = publish(*keys(9))
    told = {}

    def handle(payloads, messages):
        told.setdefault("foreign", messages[0])
        if positions[4] in [message.position for message in messages]:
            raise outbox.FailedAt(told["foreign"], "something else")

    with transaction.atomic():
        billing.do(handle)
    Worker([billing.group], batch_size=1).run_once()
    billing.drain()

    assert told["foreign"].position == foreign
    assert billing.parked() == [(positions[4], "failed")]
    assert account("scripted") == (9, 9)


def test_failed_at_works_in_a_plain_handler(script):
    """There it names the only message, and its cause is what is recorded."""
    billing = script(retry=LATER)
    (position,) = publish("a")

    def handle(payload, message):
        raise outbox.FailedAt(message, KeyError("no such order"))

    billing.do(handle)
    billing.drain()

    assert billing.cursor().last_error == f"Order at {position}: KeyError: 'no such order'"


def swallow():
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1/0")
    except DatabaseError:
        pass


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("batch", [False, True])
def test_a_swallowed_database_error_is_the_failure_of_its_message(script, batch, isolated):
    """The transaction is broken without an exception: the message that did it is blamed, not the
    next one, and nothing of the others is lost."""
    billing = script(batch=batch, retry=ONCE, savepoint_per_message=isolated)
    positions = publish(*keys(9))

    def handle(payload, message):
        billing.handle(payload, message)
        if message.position == positions[5]:
            swallow()

    def handle_all(payloads, messages):
        for payload, message in zip(payloads, messages, strict=True):
            if positions[5] in [each.position for each in messages[: messages.index(message)]]:
                continue
            handle(payload, message)

    billing.do(handle_all if batch else handle)
    billing.drain()

    assert billing.effects() == positions[:5] + positions[6:]
    assert billing.parked() == [(positions[5], "failed")]
    assert account("scripted") == (9, 9)


def test_the_message_of_a_swallowed_error_says_what_to_do(script):
    """The cursor's last error names the message and the way out."""
    billing = script(retry=LATER)
    (position,) = publish("a")
    billing.do(lambda payload, message: swallow())
    billing.drain()
    error = billing.cursor().last_error

    assert error.startswith(
        f"Order at {position}: BrokenTransaction: The handler returned normally"
    )
    assert "wrap the statement that may fail in transaction.atomic()" in error


def test_an_error_that_a_savepoint_contained_is_none(script):
    """A handler may try a statement inside atomic() and go on."""
    billing = script(retry=ONCE)
    (position,) = publish("a")

    def handle(payload, message):
        with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT 1/0")
        billing.handle(payload, message)

    billing.do(handle)
    billing.drain()

    assert billing.effects() == [position]


@pytest.mark.parametrize("size", [1, 20])
@pytest.mark.parametrize("batch", [False, True])
def test_a_constraint_that_fails_at_commit_is_blamed_on_its_message(script, batch, size):
    """A deferred foreign key fails when the batch commits: the message is found all the same, and
    the others are handled once."""
    billing = script(batch=batch, retry=ONCE)
    positions = publish(*keys(size))
    order = Order.objects.create(reference=1)
    bad = positions[size // 2]

    def handle(payload, message):
        billing.handle(payload, message)
        OrderLine.objects.create(order_id=404 if message.position == bad else order.pk)

    def handle_all(payloads, messages):
        for payload, message in zip(payloads, messages, strict=True):
            handle(payload, message)

    billing.do(handle_all if batch else handle)
    billing.drain()

    assert billing.parked() == [(bad, "failed")]
    assert billing.effects() == [position for position in positions if position != bad]
    assert OrderLine.objects.count() == size - 1
    assert account("scripted") == (size, size)


@pytest.mark.parametrize(
    "error", [ValueError("hook"), IntegrityError("hook"), outbox.OutboxError("hook")]
)
def test_a_hook_that_raises_after_the_commit_undoes_nothing(script, caplog, error):
    """The batch is committed when on_commit() hooks run: it counts as handled, is not repeated, and
    the error is logged."""
    billing = script()
    positions = publish(*keys(3))

    def fail():
        raise error

    def handle(payload, message):
        billing.handle(payload, message)
        if message.position == positions[0]:
            transaction.on_commit(fail)

    billing.do(handle)
    with caplog.at_level(logging.ERROR, "outbox"):
        worker = Worker([billing.group])
        handled = worker.drain()

    assert handled == worker.handled == 3
    assert billing.effects() == positions
    assert set(billing.times().values()) == {1}
    assert (
        f"an on_commit() function of the message at position {positions[0]} raised" in caplog.text
    )
    assert "hook" in caplog.text


def test_an_interrupted_batch_has_done_nothing(script):
    """KeyboardInterrupt ends the process: it passes through; the batch is rolled back and handled again later."""
    billing = script()
    positions = publish(*keys(3))

    def handle(payload, message):
        billing.handle(payload, message)
        if message.position == positions[1] and len(billing.runs) == 2:
            raise KeyboardInterrupt

    billing.do(handle)
    with pytest.raises(KeyboardInterrupt):
        billing.drain()
    kept = Effect.objects.count()
    billing.drain()

    assert kept == 0
    assert billing.effects() == positions
    assert account("scripted") == (3, 3)
