"""Retries, giving up, and finding the message that fails."""

from __future__ import annotations

import contextlib
import datetime
import logging

import pytest
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

import outbox
from outbox import signals
from outbox.consuming import failures
from outbox.models import Cursor
from outbox.operations import redrives
from outbox.worker import Worker
from tests.support.failing import account
from tests.support.publishing import CHANNEL, publish

pytestmark = pytest.mark.django_db(transaction=True)

SLOW = outbox.Retry(max_attempts=3, base=3600, max_delay=3600, jitter=False)


class Invoice(outbox.Event, channel=CHANNEL, version=2):
    number: int


@pytest.fixture
def received():
    """The signals that were sent, as pairs of name and facts."""
    heard = []
    named = {
        name: getattr(signals, name)
        for name in ("message_failed", "message_parked", "key_released")
    }

    def listen(name):
        def receive(sender, signal, **facts):
            heard.append((name, {"sender": sender, **facts}))

        return receive

    receivers = {name: listen(name) for name in named}
    for name, signal in named.items():
        signal.connect(receivers[name])
    yield heard
    for name, signal in named.items():
        signal.disconnect(receivers[name])


def due():
    Cursor.objects.update(retry_at=None)


def test_the_next_try_is_in_the_database(script):
    """How often a message failed and when it is tried again survive the worker."""
    billing = script(retry=SLOW)
    (position,) = publish("a")
    billing.faults[position] = ValueError("no such order")
    billing.drain()
    cursor = billing.cursor()
    until = cursor.retry_at - timezone.now()
    before_its_time = billing.drain()
    due()
    billing.drain()

    assert (cursor.attempts, cursor.failed_position) == (1, position)
    assert cursor.last_error == f"Order at {position}: ValueError: no such order"
    assert datetime.timedelta(minutes=59) < until <= datetime.timedelta(hours=1)
    assert before_its_time == 0
    assert [message.attempt for message in billing.runs] == [1, 2]


def test_a_handler_may_say_when_to_try_again(script):
    """RetryAfter sets the time of the next try, and counts as a failed one."""
    billing = script(retry=SLOW)
    (position,) = publish("a")
    billing.faults[position] = outbox.RetryAfter(60)
    billing.drain()
    cursor = billing.cursor()

    assert cursor.attempts == 1
    assert 50 < (cursor.retry_at - timezone.now()).total_seconds() <= 60


def test_a_handler_may_say_that_trying_again_is_useless(script):
    """PermanentError parks the message at its first failure."""
    billing = script(retry=SLOW)
    (position,) = publish("a")
    billing.faults[position] = outbox.PermanentError("the address does not exist")
    billing.drain()

    assert billing.parked() == [(position, "failed")]
    assert billing.times() == {position: 1}


def test_a_time_limit_ends_the_tries(script):
    """With max_seconds the group gives up at the first failure after that time."""
    billing = script(retry=outbox.Retry(max_attempts=0, base=3600, max_seconds=600))
    (position,) = publish("a")
    billing.faults[position] = ValueError()
    billing.drain()
    due()
    billing.drain()
    parked_early = billing.parked()
    Cursor.objects.update(failed_since=timezone.now() - datetime.timedelta(seconds=601))
    due()
    billing.drain()

    assert parked_early == []
    assert billing.parked() == [(position, "failed")]
    assert redrives.list_parked(billing.group).get().attempts == 3


def test_an_undecodable_message_is_parked_at_once(script):
    """A message that its event class does not fit will not fit later: there is no second try."""
    billing = script()
    billing.group.handler(Invoice)(billing.handle)
    position = publish_invoice({"number": "twelve"}, {"version": 2})
    billing.drain()
    parked = redrives.list_parked(billing.group).get()

    assert (parked.position, parked.reason, parked.attempts) == (position, "undecodable", 1)
    assert parked.error_class == "outbox.exceptions.UndecodableMessage"
    assert billing.runs == []
    assert account("scripted") == (1, 1)


@pytest.mark.parametrize(("on_unknown", "attempts"), [("wait", 0), ("park", 0)])
def test_a_payload_of_a_newer_release_is_treated_as_an_unknown_type(script, on_unknown, attempts):
    """A version that this code does not know waits for the release that knows it, or is parked."""
    billing = script(on_unknown=on_unknown)
    billing.group.handler(Invoice)(billing.handle)
    position = publish_invoice({"number": 1}, {"version": 3})
    billing.drain()
    parked = [(position, "undecodable")] if on_unknown == "park" else []

    assert billing.parked() == parked
    assert billing.cursor().attempts == attempts


def publish_invoice(payload, headers):
    with transaction.atomic():
        return outbox.publish_raw(CHANNEL, "Invoice", payload, key="a", headers=headers)


def test_one_bad_message_costs_one_more_pass_over_those_before_it(script):
    """In a batch of 500 with one failing message each other handler runs at most twice, the
    failing one twice per try, and every effect is there once."""
    billing = script(retry=outbox.Retry(max_attempts=1))
    positions = publish(*[str(number) for number in range(500)])
    bad = positions[400]
    billing.faults[bad] = ValueError()
    billing.drain()
    times = billing.times()

    assert {times[position] for position in positions[:400]} == {2}
    assert times[bad] == 2
    assert {times[position] for position in positions[401:]} == {1}
    assert billing.effects() == [position for position in positions if position != bad]
    assert billing.parked() == [(bad, "failed")]


def test_a_savepoint_per_message_repeats_nothing(script):
    """A group that isolates each message runs every handler once, the failing one too."""
    billing = script(savepoint_per_message=True, retry=outbox.Retry(max_attempts=1))
    positions = publish(*"abcdefgh")
    billing.faults[positions[5]] = ValueError()
    billing.drain()

    assert set(billing.times().values()) == {1}
    assert billing.effects() == positions[:5] + positions[6:]


def test_a_batch_handler_names_the_bad_message(script):
    """After FailedAt the messages before the named one are handled, and only it is parked."""
    billing = script(batch=True, retry=outbox.Retry(max_attempts=1))
    positions = publish(*[str(number) for number in range(20)])
    bad = positions[13]

    def handle(payloads, messages):
        for payload, message in zip(payloads, messages, strict=True):
            billing.handle(payload, message)
            if message.position == bad:
                raise outbox.FailedAt(message, ValueError("no such order"))

    billing.do(handle)
    billing.drain()
    times = billing.times()

    assert {times[position] for position in positions[:13]} == {2}
    assert {times[position] for position in positions[14:]} == {1}
    assert billing.effects() == positions[:13] + positions[14:]
    assert redrives.list_parked(billing.group).get().error_class == "builtins.ValueError"


@pytest.mark.parametrize("place", [0, 7, 19])
def test_a_batch_is_split_until_the_bad_message_is_found(script, place):
    """A batch handler that only fails is called with halves; one message is parked."""
    billing = script(batch=True, retry=outbox.Retry(max_attempts=1))
    positions = publish(*[str(number) for number in range(20)])
    bad = positions[place]
    billing.faults[bad] = ValueError()
    billing.drain()

    assert billing.parked() == [(bad, "failed")]
    assert billing.effects() == [position for position in positions if position != bad]
    assert max(billing.times().values()) <= 7
    assert account("scripted") == (20, 20)


def test_several_bad_messages_in_a_batch(script):
    """Each bad message is found and parked, everything else is handled once."""
    billing = script()
    positions = publish(*[str(number) for number in range(30)])
    bad = [positions[0], positions[1], positions[17], positions[29]]
    for position in bad:
        billing.faults[position] = ValueError()
    billing.drain()

    assert [position for position, _ in billing.parked()] == bad
    assert billing.effects() == [position for position in positions if position not in bad]
    assert account("scripted") == (30, 30)


@pytest.fixture
def refuse_writes():
    """Let the server refuse what a batch writes to its cursor row, with an SQLSTATE."""

    def refuse(sqlstate):
        with connection.cursor() as cursor:
            cursor.execute(f"""
                CREATE OR REPLACE FUNCTION refuse_writes() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    RAISE EXCEPTION 'the server refuses this' USING ERRCODE = '{sqlstate}';
                END $$;
                CREATE OR REPLACE TRIGGER refuse_writes BEFORE UPDATE ON outbox_cursor
                FOR EACH ROW WHEN (OLD.position < NEW.position)
                EXECUTE FUNCTION refuse_writes();
            """)

    def allow():
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION IF EXISTS refuse_writes() CASCADE")

    refuse.end = allow
    yield refuse
    allow()


@pytest.mark.parametrize("sqlstate", ["53100", "58030", "P0001"])
def test_an_error_that_no_message_caused_parks_none(script, refuse_writes, sqlstate):
    """When a batch cannot be committed for a reason that lies in no message, the range backs off
    and no attempt is counted."""
    billing = script(retry=outbox.Retry(max_attempts=1, base=3600))
    positions = publish("gone")
    billing.drain()
    positions += publish("a", "b")
    refuse_writes(sqlstate)
    Worker([billing.group]).run_once()
    cursor = billing.cursor()
    refuse_writes.end()
    due()
    billing.drain()

    assert "the server refuses this" in cursor.last_error
    assert cursor.retry_at is not None
    assert cursor.attempts == 0
    assert billing.effects() == positions
    assert {message.attempt for message in billing.runs} == {1}


def test_signals_tell_of_failures_after_they_are_committed(script, received):
    """message_failed comes with every failed try, message_parked with the last, key_released when
    no message of the key is parked any more."""
    billing = script()
    positions = publish("a", "a")
    error = billing.faults[positions[0]] = ValueError()
    billing.drain()
    billing.faults.clear()
    redrives.redrive(billing.group, key="a")
    failed = [facts for name, facts in received if name == "message_failed"]

    assert [name for name, _ in received] == [
        "message_failed",
        "message_failed",
        "message_failed",
        "message_parked",
        "key_released",
    ]
    assert [facts["message"].attempt for facts in failed] == [1, 2, 3]
    assert [facts["retry_delay"] for facts in failed] == [0, 0, None]
    assert {facts["error"] for facts in failed} == {error}
    assert {id(facts["sender"]) for _, facts in received} == {id(billing.group)}
    assert received[-1][1]["key"] == "a"


def test_a_receiver_that_raises_harms_nothing(script, caplog):
    """Its error is logged, and the message is parked all the same."""

    def receive(**facts):
        raise RuntimeError("the pager is down")

    signals.message_parked.connect(receive)
    billing = script()
    positions = publish("a", "b")
    billing.faults[positions[0]] = ValueError()
    billing.drain()
    signals.message_parked.disconnect(receive)

    assert billing.parked() == [(positions[0], "failed")]
    assert billing.effects() == positions[1:]
    assert "the pager is down" in caplog.text


def test_each_failure_is_logged_with_its_place(script, caplog):
    """A log record names group, channel, position and attempt."""
    billing = script(name="billing-log")
    (position,) = publish("a")
    billing.faults[position] = ValueError("no such order")
    billing.drain()
    records = [record for record in caplog.records if record.name == "outbox.failures"]

    assert [record.levelno for record in records] == [
        logging.WARNING,
        logging.WARNING,
        logging.ERROR,
    ]
    assert records[0].getMessage() == (
        f"group billing-log failed at position {position} (attempt 1, next try in 0.0 s): ValueError: no such order"
    )
    assert (records[2].group, records[2].channel) == ("billing-log", CHANNEL)
    assert (records[2].position, records[2].attempt) == (position, 3)


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error",
    [ValueError("a\0b"), ValueError("\ud800"), Unspeakable(), ValueError("x" * 10**6)],
    ids=["NUL", "a lone surrogate", "no text", "very long"],
)
def test_whatever_an_error_says_the_message_is_parked(script, error):
    """Texts that PostgreSQL cannot store, or that fail to be made, stop nothing."""
    billing = script(retry=outbox.Retry(max_attempts=2, base=0))
    (position,) = publish("a")
    billing.faults[position] = error
    billing.drain()
    parked = redrives.list_parked(billing.group).get()

    assert parked.position == position
    assert len(parked.error) <= failures.ERROR_LENGTH
    assert len(parked.traceback) <= failures.TRACEBACK_LENGTH


def test_parking_and_the_advance_are_one_transaction(script, refuse_writes):
    """When the advance fails, nothing is parked."""
    billing = script(retry=outbox.Retry(max_attempts=1, base=3600))
    (position,) = publish("a")
    billing.faults[position] = ValueError()
    refuse_writes("P0001")
    with contextlib.suppress(DatabaseError):
        Worker([billing.group]).run_once()

    assert billing.parked() == []
    assert billing.cursor().position < position
    assert connection.get_autocommit()
