"""Leased delivery: handlers outside a transaction, taken over when the lease ends."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3

import outbox
from outbox.consuming import cursors, leased, parked_messages
from outbox.exceptions import StaleClaim
from outbox.models import Cursor
from outbox.operations import redrives as parking
from outbox.operations import replay
from outbox.worker import Worker
from tests.shop.models import Effect
from tests.support.failing import account
from tests.support.harness import waiting_for_locks
from tests.support.processes import start_process, wait_until
from tests.support.publishing import CHANNEL, publish

pytestmark = pytest.mark.django_db(transaction=True)

WORKER = ("-m", "tests.support.leased_worker")


@pytest.fixture
def mailer(script):
    return script("mailer", delivery="at_least_once", lease=30.0)


@pytest.mark.parametrize("ends", ["by its supervisor", "by a takeover", "by a reset"])
def test_a_lease_that_has_ended_is_not_renewed(mailer, ends):
    """A renewal names the lease that it knows: one that was ended, taken by another worker, or made
    stale by an operator is refused, and nothing is written."""
    publish("a")
    worker = Worker([mailer.group])
    worker.register()
    with transaction.atomic():
        batch = worker._claim()
        leased.begin(batch)
    cursors.renew(batch.claim, 30.0, "default")
    changed = {
        "by its supervisor": {"leased_until": None},
        "by a takeover": {"lease_token": batch.claim.lease_token + 1},
        "by a reset": {"generation": batch.claim.generation + 1},
    }
    Cursor.objects.filter(id=batch.claim.id).update(**changed[ends])
    before = mailer.cursor().leased_until
    with pytest.raises(StaleClaim):
        cursors.renew(batch.claim, 60.0, "default")

    assert mailer.cursor().leased_until == before


def test_handlers_run_outside_a_transaction(mailer):
    """The handler's own transactions are its own, and the range is leased meanwhile."""
    seen = []

    def handle(payload, message):
        cursor = mailer.cursor()
        seen.append((connection.in_atomic_block, cursor.leased_by, cursor.leased_until is None))
        with transaction.atomic(durable=True):
            mailer.handle(payload, message)

    mailer.do(handle)
    positions = publish("a", "b", None)
    moved = mailer.drain()
    cursor = mailer.cursor()

    assert moved == 3
    assert mailer.effects() == positions
    assert set(seen) == {(False, cursors.holder(), False)}
    assert cursor.leased_until is None
    assert cursor.position >= positions[-1]
    assert account("mailer") == (3, 3)


def test_progress_is_written_after_each_message(mailer):
    """While a message is handled, those before it are done for good."""
    seen = []

    def handle(payload, message):
        seen.append(mailer.cursor().position)

    mailer.do(handle)
    positions = publish("a", "b", "c")
    mailer.drain()

    assert seen[0] < positions[0]
    assert seen[1:] == positions[:2]


def test_a_failing_message_is_retried_and_parked(mailer):
    """The same path as under a transaction: tries, parking, the key blocked, redrive in order."""
    positions = publish("a", "b", "a")
    mailer.faults[positions[0]] = ValueError("the server is down")
    mailer.drain()
    parked = mailer.parked()
    mailer.faults.clear()
    (later,) = publish("a")
    mailer.drain()
    redriven = parking.redrive(mailer.group, everything=True)
    keys = {message.idempotency_key for message in mailer.runs if message.position == positions[0]}

    assert parked == [(positions[0], "failed"), (positions[2], "blocked")]
    assert redriven.handled == 3
    assert [message.position for message in mailer.runs[-3:]] == [positions[0], positions[2], later]
    assert mailer.times() == {positions[0]: 4, positions[1]: 1, positions[2]: 1, later: 1}
    assert keys == {f"mailer:{positions[0]}"}
    assert account("mailer") == (4, 4)


def test_a_key_released_meanwhile_is_not_parked_again(mailer):
    """A redrive empties the key while a worker has later messages of it in hand: the worker lets
    go of the range, and the next claim handles them."""
    first = publish("a")
    mailer.faults[first[0]] = ValueError()
    mailer.drain()
    mailer.faults.clear()
    positions = publish("b", "a", "c")

    def handle(payload, message):
        mailer.handle(payload, message)
        if message.position == positions[0]:
            redrive = threading.Thread(target=redrive_in_a_thread, args=[mailer.group])
            redrive.start()
            redrive.join()

    mailer.do(handle)
    mailer.drain()

    assert mailer.parked() == []
    assert mailer.times() == {first[0]: 4, positions[0]: 1, positions[1]: 1, positions[2]: 1}
    assert account("mailer") == (4, 4)


def test_a_key_released_while_its_next_message_is_put_aside(
    mailer,
    background,
    connect,
    monkeypatch,
):
    """A redrive is about to empty the key when a worker parks a later message behind it: the worker
    waits for the redrive's commit, sees that the key is free, and lets go of the range."""
    first = publish("a")
    mailer.faults[first[0]] = ValueError()
    mailer.drain()
    mailer.faults.clear()
    positions = publish("b", "a", "c")
    is_redriving, go_on = threading.Event(), threading.Event()
    redrives = []
    look = parked_messages.blocked_keys

    def handle(payload, message):
        mailer.handle(payload, message)
        if message.position == first[0]:
            is_redriving.set()
            assert go_on.wait(120)

    def look_then_redrive(claim, keys, using):
        found = look(claim, keys, using)
        if "a" in keys and not redrives:
            redrives.append(background(redrive_all, "mailer"))
            assert is_redriving.wait(120)
        return found

    mailer.do(handle)
    monkeypatch.setattr(parked_messages, "blocked_keys", look_then_redrive)
    observer = connect()
    work = background(mailer.drain)
    wait_until(lambda: waiting_for_locks(observer))
    go_on.set()
    redrives[0].result()
    work.result()
    mailer.drain()  # the worker may have ended while the redrive looked for more in the range

    assert mailer.parked() == []
    assert [position for position in mailer.effects() if position in positions] == positions
    assert account("mailer") == (4, 4)


def redrive_all(group):
    return parking.redrive(group, everything=True)


def redrive_in_a_thread(group):
    redrive_all(group)
    connections.close_all()


def test_a_batch_handler_gets_neighbours_together(script):
    """Also without a transaction; the progress is written after each call."""
    mailer = script("mailer", batch=True, delivery="at_least_once")
    calls = []
    mailer.do(lambda payloads, messages: calls.append(len(messages)))
    mailer.group.ignores("Unknown")
    publish("a", "b", "c")
    with transaction.atomic():
        outbox.publish_raw(CHANNEL, "Unknown", {})
    publish("d")
    mailer.drain()

    assert calls == [3, 1]
    assert (mailer.cursor().processed, mailer.cursor().skipped) == (4, 1)


def test_a_reset_refuses_the_advance_of_the_message_in_hand(mailer, caplog):
    """A cursor that is moved while a handler runs stays where it was moved to."""
    positions = publish("a", "b")

    def handle(payload, message):
        mailer.handle(payload, message)
        if len(mailer.runs) == 1:
            replay.reset(mailer.group, position=0)

    mailer.do(handle)
    mailer.drain()

    assert mailer.times() == {positions[0]: 2, positions[1]: 1}
    assert "lost its lease" in caplog.text
    assert account("mailer") == (2, 2)


@pytest.fixture
def slow(script, background):
    """Start a worker of a leased group whose handler waits; return the group and what lets it go on."""
    go_on = threading.Event()

    def start(lease):
        made = script("mailer", delivery="at_least_once", lease=lease)

        def handle(payload, message):
            made.handle(payload, message)
            assert go_on.wait(120)

        made.do(handle)
        return made, background(made.drain), go_on

    yield start
    go_on.set()


def test_a_lease_is_renewed_while_a_handler_is_slow(slow):
    """A handler may take longer than the lease: when its first end has passed, it has a later one."""
    positions = publish("a", "b")
    mailer, first, go_on = slow(0.3)
    row = wait_until(lambda: Cursor.objects.filter(leased_until__isnull=False).first())
    is_renewed = "clock_timestamp() > %s AND leased_until > clock_timestamp()"
    wait_until(lambda: Cursor.objects.extra(where=[is_renewed], params=[row.leased_until]))
    go_on.set()
    first.result()

    assert mailer.times() == {positions[0]: 1, positions[1]: 1}


def test_another_worker_leaves_a_leased_range_alone(slow):
    """It finds nothing to do while the handler of the first one works."""
    positions = publish("a", "b")
    mailer, first, go_on = slow(600.0)
    wait_until(lambda: mailer.runs)
    second = Worker([mailer.group]).run_once()
    go_on.set()
    first.result()

    assert second is None
    assert mailer.times() == {positions[0]: 1, positions[1]: 1}


def test_a_stopped_worker_gives_the_range_back(mailer):
    """stop() ends after the message in hand; the range is free at once."""
    positions = publish("a", "b", "c")
    worker = Worker([mailer.group])

    def handle(payload, message):
        mailer.handle(payload, message)
        worker.stop()

    mailer.do(handle)
    worker.drain()

    assert mailer.effects() == positions[:1]
    assert mailer.cursor().leased_until is None
    assert mailer.cursor().position == positions[0]


def terminate_own_session():
    with contextlib.suppress(DatabaseError), connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def test_a_session_that_ends_after_the_work_costs_nothing(mailer):
    """The handler is done when its session ends: the progress is written in a new one, no attempt is
    counted and nothing is repeated."""
    positions = publish("a", "b", "c")

    def handle(payload, message):
        mailer.handle(payload, message)
        if message.position == positions[1]:
            terminate_own_session()

    mailer.do(handle)
    moved = mailer.drain()

    assert moved == 3
    assert mailer.times() == dict.fromkeys(positions, 1)
    assert mailer.parked() == []
    assert mailer.cursor().attempts == 0
    assert account("mailer") == (3, 3)


def test_a_handler_whose_session_ends_is_charged_from_the_second_time_on(mailer):
    """A session may end by chance once; a message that ends it each time is parked."""
    positions = publish("a", "b")

    def handle(payload, message):
        mailer.runs.append(message)
        if message.position == positions[0]:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    mailer.do(handle)
    Worker([mailer.group]).run_once()
    after_one = mailer.cursor().attempts
    for _ in range(20):
        mailer.due()
        mailer.drain()
    attempts = [message.attempt for message in mailer.runs if message.position == positions[0]]

    assert after_one == 0
    assert attempts == [1, 1, 2, 3]
    assert mailer.parked() == [(positions[0], "failed")]
    assert mailer.cursor().position >= positions[1]


@pytest.mark.skipif(not is_psycopg3, reason="psycopg2 waits in C for the answer of a statement")
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_statement_that_a_handler_left_unfinished_costs_the_session_alone(script, delivery):
    """An alarm may interrupt the wait for its answer: the worker goes on in a new session."""
    made = script("mailer", delivery=delivery)
    positions, alarms = publish("a", "b", "c"), []

    def handle(payload, message):
        made.handle(payload, message)
        if message.position == positions[1] and not alarms:
            alarms.append(message)
            connection.connection.pgconn.send_query(b"SELECT pg_sleep(0.01)")

    made.do(handle)
    Worker([made.group]).run(until_idle=True)

    assert made.effects() == positions
    assert made.parked() == []
    assert account("mailer") == (3, 3)


def test_a_commit_whose_reply_was_lost_is_not_written_twice(mailer, monkeypatch):
    """The progress arrived and its reply did not: the second write finds it and goes on."""
    positions = publish("a", "b")
    write = leased.Lease._write
    lost = []

    def write_and_lose_the_reply(self, outcome):
        write(self, outcome)
        if not lost:
            lost.append(outcome)
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    monkeypatch.setattr(leased.Lease, "_write", write_and_lose_the_reply)
    moved = mailer.drain()

    assert moved == 2
    assert mailer.times() == dict.fromkeys(positions, 1)
    assert account("mailer") == (2, 2)


def test_a_lease_is_reported_when_it_comes_from_another_process(mailer, caplog):
    """INFO when a range comes to this process, not at each of its batches."""
    publish("a")
    with caplog.at_level(logging.INFO, "outbox"):
        mailer.drain()
        publish("b")
        mailer.drain()

    assert (
        caplog.text.count(
            "group mailer, slots 0 to 32767 of channel trouble: this worker took the lease, which expires in 30 s unless renewed"
        )
        == 1
    )


def test_it_works_inside_a_surrounding_transaction(mailer):
    """As in a TestCase: no thread renews the lease, which no other session sees anyway."""
    with transaction.atomic():
        outbox.publish_raw(CHANNEL, "Order", {}, key="a")
        Worker([mailer.group], count_own_floor=False).drain()
        inside = len(mailer.effects())
        transaction.set_rollback(True)

    assert inside == 1
    assert threading.active_count() == 1 or "outbox-lease" not in {
        thread.name for thread in threading.enumerate()
    }


def publish_mails(*waits):
    with transaction.atomic():
        return [
            outbox.publish_raw("leased", "Mail", {"wait": wait}, key=str(number))
            for number, wait in enumerate(waits)
        ]


def runs():
    """Position -> the processes that handled it, in order."""
    found = {}
    for effect in Effect.objects.filter(group="leased").order_by("id"):
        found.setdefault(effect.position, []).append(effect.backend)
    return found


def test_a_worker_that_was_frozen_beyond_its_lease_is_refused(close_gate):
    """SIGSTOP in a handler, another worker takes over, SIGCONT: the first one's advance is refused
    and it says so; no message is lost, and only the one in hand was handled twice."""
    gate = close_gate("leased")
    positions = publish_mails(False, True, False, False)
    first = start_process(*WORKER, "1")
    try:
        wait_until(gate.waiting)
        os.kill(first.pid, signal.SIGSTOP)
        wait_until(lambda: "State:\tT" in Path(f"/proc/{first.pid}/status").read_text())
        gate.open()
        second = start_process(*WORKER, "30")
        assert second.wait(120) == 0
        while Cursor.objects.get(group="leased").position < positions[-1]:
            second = start_process(*WORKER, "30")
            assert second.wait(120) == 0
        before = Cursor.objects.filter(group="leased").values().get()
        os.kill(first.pid, signal.SIGCONT)
        output = first.communicate(timeout=120)[1]
    finally:
        first.kill()
        first.communicate()
    done = runs()

    assert output.count("lost its lease") == 1
    assert f"after position {positions[0]}" in output
    assert done[positions[0]] == [first.pid]
    assert done[positions[1]][0] == first.pid
    assert len(done[positions[1]]) == 2
    assert [len(done[position]) for position in positions[2:]] == [1, 1]
    assert first.pid not in done[positions[2]] + done[positions[3]]
    assert Cursor.objects.filter(group="leased").values().get() == before


def test_a_worker_that_dies_leaves_the_range_to_the_next_one(close_gate):
    """SIGKILL in a handler: when the lease is over, another worker handles the message again and
    the rest once."""
    gate = close_gate("leased")
    positions = publish_mails(False, True, False)
    first = start_process(*WORKER, "1")
    wait_until(gate.waiting)
    first.kill()
    first.communicate()
    gate.open()
    deadline = time.monotonic() + 60
    while Cursor.objects.get(group="leased").position < positions[-1]:
        assert time.monotonic() < deadline
        assert start_process(*WORKER, "1").wait(120) == 0

    assert [len(runs()[position]) for position in positions] == [1, 2, 1]
