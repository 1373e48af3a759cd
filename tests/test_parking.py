"""Parked messages: list, redrive, discard, and what a crash leaves behind."""

from __future__ import annotations

import itertools
import os
import threading

import pytest
from django.db import DataError, connection, transaction

import outbox
from outbox.consuming import crashes, cursors, outcomes, parked_messages
from outbox.consuming.claims import Claims
from outbox.exceptions import NotParked, OutboxError
from outbox.models import Cursor, OperatorAction, ParkedMessage
from outbox.operations import redrives
from outbox.worker import Worker
from tests.shop.models import Effect, Order, OrderLine
from tests.support.amounts import amount
from tests.support.failing import account
from tests.support.harness import waiting_for_locks
from tests.support.processes import wait_until
from tests.support.publishing import publish

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = amount(10, 400)


@pytest.fixture
def trouble(script):
    """A group in which keys "a" and "b" are parked, two messages each, and one without a key."""
    billing = script()
    billing.positions = publish("a", "b", None, "a", "b", "c")
    for position in billing.positions[:3]:
        billing.faults[position] = ValueError("no such order")
    billing.drain()
    billing.runs_before, billing.runs = billing.runs, []
    return billing


def test_parked_messages_are_listed_in_order(trouble):
    """All of a group, or of one key."""
    listed = [parked.position for parked in redrives.list_parked("scripted")]
    of_key = [parked.position for parked in redrives.list_parked("scripted", key="b")]

    assert listed == trouble.positions[:5]
    assert of_key == [trouble.positions[1], trouble.positions[4]]


def test_a_batch_of_blocked_messages_alone_is_a_batch(trouble):
    """It is counted like any other, and the worker does not go on to the next range with it."""
    (blocked,) = publish("a")

    assert Worker(["scripted"]).run_once() == 1
    assert trouble.parked()[-1] == (blocked, "blocked")


def leave_no_order(payload, message):
    """Fail when the transaction commits, and at no statement of the handler."""
    OrderLine.objects.create(order_id=404)


def end_the_session(payload, message):
    """Close the driver's connection, with the transaction of the claim."""
    connection.connection.close()
    return True


def end_the_transaction(payload, message):
    """Roll the transaction of the claim back."""
    with connection.cursor() as cursor:
        cursor.execute("ROLLBACK")
    return True


@pytest.mark.parametrize(
    "ruin", [leave_no_order, end_the_session, end_the_transaction], ids=lambda ruin: ruin.__name__
)
@pytest.mark.parametrize("before", [0, 1])
def test_messages_behind_a_parked_one_survive_a_batch_that_fails_as_a_whole(trouble, ruin, before):
    """They were taken out of the rows for that transaction: the next try parks them all the same."""
    positions = publish(*"e" * before, "a", "b", "f", "a", "g")
    bad = positions[before + 2]

    def handle(payload, message):
        if message.position == bad and ruin(payload, message):
            return
        trouble.handle(payload, message)

    trouble.do(handle)
    wait_until(lambda: trouble.drain() is not None and trouble.cursor().position >= positions[-1])
    behind = [positions[before], positions[before + 1], positions[before + 3]]

    assert [each for each in trouble.parked() if each[0] in positions] == sorted(
        [(bad, "failed"), *((position, "blocked") for position in behind)]
    )
    assert trouble.effects()[1:] == [*positions[:before], positions[-1]]
    assert account("scripted") == (11 + before, 11 + before)


def test_two_messages_that_fail_in_different_ways_are_both_given_up(script):
    """The attempts at one are not forgotten while the other one fails, so none is tried for ever."""
    billing = script(retry=outbox.Retry(max_attempts=2, base=0))
    first, second, last = publish("a", "b", "c")
    ways = {first: leave_no_order, second: end_the_session}

    def handle(payload, message):
        if way := ways.get(message.position):
            way(payload, message)
        else:
            billing.handle(payload, message)

    billing.do(handle)
    worker = Worker(["scripted"])
    turns = 0
    while worker.run_once() is not None:
        turns += 1
        assert turns < 20, billing.cursor().last_error

    assert billing.parked() == [(first, "failed"), (second, "failed")]
    assert billing.effects() == [last]


@pytest.mark.parametrize("limit", [1, 3])
def test_messages_behind_a_parked_one_survive_a_refused_write(trouble, limit, monkeypatch):
    """No message is to blame when the write of the progress fails: the same rows are tried again."""
    positions = publish("a", "f", "b", "g")
    write, failures = outcomes.write, iter(range(limit))

    def refuse(outcome, using, lease=None):
        if outcome.error is None and next(failures, None) is not None:
            raise DataError("out of range")
        write(outcome, using, lease)

    monkeypatch.setattr(outcomes, "write", refuse)
    wait_until(lambda: trouble.drain() is not None and trouble.cursor().position >= positions[-1])

    assert trouble.parked()[-2:] == [(positions[0], "blocked"), (positions[2], "blocked")]
    assert trouble.effects()[1:] == [positions[1], positions[3]]
    assert account("scripted") == (10, 10)


def test_what_is_behind_a_parked_message_is_committed_before_one_that_killed_its_process(trouble):
    """Else that message is never the next of its range, so that the group never gives up on it."""
    behind, deadly = publish("a", "f")
    died = crashes.record_dead_process(trouble.cursor().pk, deadly, "killed by SIGKILL")
    moved = Worker(["scripted"]).run_once()

    assert (died, moved) == (True, 1)
    assert trouble.parked()[-1] == (behind, "blocked")
    assert trouble.cursor().position == deadly - 1
    assert trouble.runs == []


def test_more_parked_messages_than_the_batch_has_keys(trouble):
    """The look for blocked keys finds them also where many messages are parked."""
    blocked = publish("a")
    trouble.drain()
    free = publish("d")
    trouble.drain()

    assert trouble.parked()[-1] == (blocked[0], "blocked")
    assert trouble.effects()[-1] == free[0]
    assert account("scripted") == (8, 8)


def test_a_redrive_by_key_leaves_the_others_alone(trouble):
    """Only the messages of the key are handled, in order."""
    trouble.faults.clear()
    redriven = redrives.redrive(trouble.group, key="b")

    assert redriven == redrives.Redriven(2, 0, (), 0)
    assert trouble.effects()[1:] == [trouble.positions[1], trouble.positions[4]]
    assert [position for position, _ in trouble.parked()] == [
        trouble.positions[0],
        trouble.positions[2],
        trouble.positions[3],
    ]
    assert account("scripted") == (6, 6)


def test_a_redrive_by_position_takes_the_whole_key(trouble):
    """Naming a later message of a key handles the earlier ones first; one without a key stands
    alone."""
    trouble.faults.clear()
    of_key = redrives.redrive(trouble.group, position=trouble.positions[3])
    alone = redrives.redrive(trouble.group, position=trouble.positions[2])

    assert (of_key.handled, alone.handled) == (2, 1)
    assert trouble.effects()[1:] == [
        trouble.positions[0],
        trouble.positions[3],
        trouble.positions[2],
    ]


def test_a_redrive_of_everything_goes_on_past_a_key_that_fails(trouble):
    """A message that fails again stops its key and no other one."""
    del trouble.faults[trouble.positions[1]], trouble.faults[trouble.positions[2]]
    redriven = redrives.redrive(trouble.group, everything=True)
    failed = redrives.list_parked(trouble.group)[0]

    assert (redriven.handled, redriven.remaining) == (3, 2)
    assert [(each.key, each.position) for each in redriven.failed] == [("a", trouble.positions[0])]
    assert redriven.failed[0].error == "ValueError: no such order"
    assert trouble.parked() == [
        (trouble.positions[0], "failed"),
        (trouble.positions[3], "blocked"),
    ]
    assert failed.attempts == 4
    assert account("scripted") == (6, 6)


def test_a_blocked_message_that_fails_in_a_redrive_becomes_the_failed_one(trouble):
    """The head is handled, the next one fails with its own error and stays."""
    trouble.faults.clear()
    trouble.faults[trouble.positions[3]] = outbox.FailedAt(
        trouble.runs_before[0], KeyError("customer")
    )
    redrives.redrive(trouble.group, key="a")
    parked = redrives.list_parked(trouble.group, key="a").get()

    assert (parked.position, parked.reason, parked.attempts) == (trouble.positions[3], "failed", 1)
    assert parked.error_class == "builtins.KeyError"
    assert parked.first_failed_at is not None


def test_attempts_are_counted_on(trouble):
    """In a redrive message.attempt continues where the workers stopped; a blocked one begins."""
    trouble.faults.clear()
    redrives.redrive(trouble.group, key="a")

    assert [message.attempt for message in trouble.runs] == [4, 1]
    assert [message.replayed for message in trouble.runs] == [False, False]
    assert trouble.runs[0].idempotency_key == f"scripted:{trouble.positions[0]}"


def test_a_limit_ends_a_redrive(trouble):
    """No more messages than the limit are tried."""
    trouble.faults.clear()
    redriven = redrives.redrive(trouble.group, everything=True, limit=2)

    assert (redriven.handled, redriven.remaining) == (2, 3)
    assert len(trouble.runs) == 2


def test_a_dry_run_changes_nothing(trouble):
    """It says how many messages would be tried."""
    before = list(ParkedMessage.objects.order_by("id").values())
    planned = redrives.redrive(trouble.group, everything=True, limit=4, dry_run=True)

    assert (planned.handled, planned.remaining) == (4, 5)
    assert list(ParkedMessage.objects.order_by("id").values()) == before
    assert trouble.runs == []


def test_a_redrive_needs_one_selection(trouble):
    """None, two, or one that is empty is refused."""
    with pytest.raises(OutboxError, match="Redrive one of"):
        redrives.redrive(trouble.group)
    with pytest.raises(OutboxError, match="Redrive one of"):
        redrives.redrive(trouble.group, key="a", everything=True)
    with pytest.raises(NotParked, match="with key 'z'"):
        redrives.redrive(trouble.group, key="z")
    with pytest.raises(NotParked, match="at position 0"):
        redrives.redrive(trouble.group, position=0)


def test_a_message_without_a_handler_is_skipped(trouble):
    """A handler that was removed meanwhile: the message leaves the queue as any other would."""
    trouble.group._routes.clear()
    trouble.group.ignores("Order")
    redriven = redrives.redrive(trouble.group, key="a")

    assert redriven == redrives.Redriven(0, 2, (), 0)
    assert trouble.cursor().skipped == 2
    assert account("scripted") == (6, 6)


def test_a_failing_redrive_leaves_no_effect(trouble):
    """What the handler wrote is undone, also when only a deferred constraint refuses it."""
    trouble.faults.clear()

    def handle(payload, message):
        trouble.handle(payload, message)
        OrderLine.objects.create(order_id=999)

    trouble.do(handle)
    redriven = redrives.redrive(trouble.group, key="a")

    assert redriven.failed[0].error.startswith("IntegrityError")
    assert trouble.effects() == [trouble.positions[5]]
    assert not Order.objects.exists()


def test_a_discarded_message_is_gone_and_recorded(trouble):
    """It is counted as skipped; who dropped it, what and why stands in the operators' actions."""
    discarded = redrives.discard(
        trouble.group, trouble.positions[0], reason="test order", actor="ann"
    )
    action = OperatorAction.objects.get()
    trouble.faults.clear()
    redrives.redrive(trouble.group, key="a")

    assert (discarded.key, discarded.remaining) == ("a", 1)
    assert (action.actor, action.action, action.group) == ("ann", "discard", "scripted")
    assert action.details["reason"] == "test order"
    assert action.details["old"]["position"] == trouble.positions[0]
    assert action.details["old"]["error"] == "no such order"
    assert trouble.effects()[1:] == [trouble.positions[3]]
    assert (trouble.cursor().skipped, trouble.cursor().parked) == (1, 3)
    assert account("scripted") == (6, 6)


def test_only_a_parked_message_can_be_discarded(trouble):
    """Another position is refused, and nothing is recorded."""
    with pytest.raises(NotParked):
        redrives.discard(trouble.group, trouble.positions[5], reason="a mistake")

    assert not OperatorAction.objects.exists()


def test_a_redrive_waits_for_the_batch_in_hand(trouble, background, connect):
    """While a worker holds the range, a redrive waits; nothing is handled twice."""
    trouble.faults.clear()
    observer = connect()
    with transaction.atomic():
        Cursor.objects.select_for_update().get(group="scripted")
        redrive = background(redrive_everything, trouble.group)
        wait_until(lambda: waiting_for_locks(observer))
        meanwhile = list(trouble.runs)

    assert redrive.result().handled == 5
    assert meanwhile == []


def redrive_everything(group):
    return redrives.redrive(group, everything=True)


def test_what_is_parked_before_a_reset_point_is_not_counted_again(trouble):
    """Messages parked below the position that counting starts from leave the count alone."""
    Cursor.objects.filter(group="scripted").update(
        counted_from=trouble.positions[-1], processed=0, skipped=0
    )
    trouble.faults.clear()
    redrives.redrive(trouble.group, key="a")
    redrives.discard(trouble.group, trouble.positions[1], reason="a test")

    assert account("scripted") == (0, 0)
    assert trouble.cursor().parked == 2


def test_redrives_race_with_workers_and_publishers(script, background):
    """A key is parked, redriven by two at once while two workers handle the same range and a
    publisher adds to the key: each message is handled once and in order, round after round."""
    billing = script(retry=outbox.Retry(max_attempts=1))
    end, start = threading.Event(), threading.Barrier(2)
    published = []

    def work():
        worker = Worker([billing.group], batch_size=3)
        while not end.is_set():
            if not worker.run_once():
                end.wait(0.001)

    def add():
        for _ in range(5):
            published.extend(publish("a", "b", "a"))

    def redrive():
        start.wait(120)
        while redrives.list_parked(billing.group).exists():
            redrive_everything(billing.group)

    workers = [background(work) for _ in range(2)]
    try:
        for _ in range(ROUNDS):
            billing.faults["a"] = ValueError()
            published.extend(publish("a", "a"))
            wait_until(lambda: len(billing.parked()) >= 2)
            publisher, others = background(add), [background(redrive) for _ in range(2)]
            billing.faults.clear()
            for thread in (publisher, *others):
                thread.result()
            wait_until(lambda: Effect.objects.count() == len(published))
            check_order(published)
            start.reset()
    finally:
        end.set()
    for worker in workers:
        worker.result()

    assert billing.parked() == []
    assert account("scripted") == (len(published), len(published))


def check_order(published):
    effects = list(Effect.objects.order_by("id").values_list("key", "position"))
    assert sorted(position for _, position in effects) == sorted(published)
    for key, of_key in itertools.groupby(sorted(effects, key=lambda each: each[0]), lambda e: e[0]):
        positions = [position for _, position in of_key]
        assert positions == sorted(positions), f"key {key} out of order"


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_crash_counts_as_a_failed_attempt(script, attempts):
    """What a dead worker had in hand is tried again, and parked when the tries are used up."""
    billing = script()
    positions = publish("a", "a", "b")
    Worker([billing.group]).register()
    cursor = billing.cursor()
    recorded = [
        crashes.record_dead_process(cursor.id, positions[0], "killed by SIGSEGV")
        for _ in range(attempts)
    ]
    parked = billing.parked()
    error = billing.cursor().last_error
    billing.drain()

    assert all(recorded)
    if attempts == 1:
        assert "WorkerDied" in error and "SIGSEGV" in error
        assert [message.attempt for message in billing.runs] == [2, 1, 1]
    else:
        assert parked == [(positions[0], "failed")]
        assert billing.effects() == positions[2:]
        assert redrives.list_parked("scripted")[0].error_class == "outbox.exceptions.WorkerDied"
    assert account("scripted") == (3, 3)


def test_a_crash_in_the_middle_of_a_batch_blames_the_message_in_hand(script):
    """The messages before it are handled first and stay, whatever becomes of it."""
    billing = script(retry=outbox.Retry(max_attempts=2, base=0))
    positions = publish("a", "b", "c", "d")
    Worker([billing.group]).register()
    crashes.record_dead_process(billing.cursor().id, positions[2], "killed by SIGKILL")
    crashes.record_dead_process(billing.cursor().id, positions[2], "killed by SIGKILL")
    not_parked_yet = billing.parked()
    Worker([billing.group]).run_once()
    before = billing.effects()
    crashes.record_dead_process(billing.cursor().id, positions[2], "killed by SIGKILL")
    billing.drain()

    assert not_parked_yet == []
    assert before == positions[:2]
    assert billing.parked() == [(positions[2], "failed")]
    assert billing.effects() == [positions[0], positions[1], positions[3]]
    assert billing.times()[positions[0]] == 1
    assert account("scripted") == (4, 4)


def test_a_crash_in_a_batch_handler_parks_no_innocent_message(script):
    """The first message of the call is only suspected: then they are handled one by one, and the
    one that kills the worker alone is given up."""
    billing = script(batch=True, retry=outbox.Retry(max_attempts=1))
    positions = publish("a", "b", "c")
    Worker([billing.group]).register()
    cursor = billing.cursor()
    crashes.record_dead_process(cursor.id, positions[0], "killed by SIGKILL")
    after_the_first = billing.parked()
    crashes.record_dead_process(cursor.id, positions[1], "killed by SIGKILL")
    Worker([billing.group]).run_once()
    crashes.record_dead_process(cursor.id, positions[1], "killed by SIGKILL")
    billing.drain()

    assert after_the_first == []
    assert billing.parked() == [(positions[1], "failed")]
    assert billing.effects() == [positions[0], positions[2]]
    assert account("scripted") == (3, 3)


def test_a_crash_of_the_past_changes_nothing(script):
    """When the cursor is beyond the message, or gone, nothing is counted."""
    billing = script()
    (position,) = publish("a")
    billing.drain()
    before = list(Cursor.objects.values())
    outcomes = [
        crashes.record_dead_process(billing.cursor().id, position, "killed by SIGKILL"),
        crashes.record_dead_process(0, position, "killed by SIGKILL"),
    ]

    assert outcomes == [False, False]
    assert list(Cursor.objects.values()) == before


def test_a_crash_under_a_lease_needs_its_holder(script):
    """While a live process holds the lease, another one's death changes nothing; the holder's own
    death ends the lease."""
    billing = script(delivery="at_least_once")
    (position,) = publish("a")
    worker = Worker([billing.group])
    worker.register()
    with transaction.atomic():
        claim, _ = Claims("default").claim([billing.group], 1, end_position=position)
        cursors.lease(claim, 3600, "default")
    of_another = crashes.record_dead_process(claim.id, position, "killed by SIGKILL", pid=1)
    of_the_holder = crashes.record_dead_process(
        claim.id, position, "killed by SIGKILL", pid=os.getpid()
    )

    assert (of_another, of_the_holder) == (False, True)
    assert billing.cursor().leased_until is None
    assert billing.cursor().attempts == 1


def test_no_look_for_parked_keys_while_nothing_is_parked(script, monkeypatch):
    """The check costs a batch nothing unless the range has a parked message."""
    billing = script()
    looked = []
    look = parked_messages.blocked_keys
    monkeypatch.setattr(
        parked_messages,
        "blocked_keys",
        lambda *arguments: looked.append(1) or look(*arguments),
    )
    publish("a", "b")
    billing.drain()
    before = len(looked)
    (bad,) = publish("c")
    billing.faults[bad] = ValueError()
    billing.drain()
    publish("d")
    billing.drain()

    assert before == 0
    assert len(looked) == 1
    assert connection.get_autocommit()


def prepares_it():
    with connection.cursor() as cursor:
        cursor.execute("PREPARE TRANSACTION 'of a redrive'")


def connects_anew():
    connection.close()
    connection.connect()


@pytest.mark.parametrize("act", [prepares_it, connects_anew])
def test_a_redrive_survives_a_handler_that_takes_its_transaction_away(trouble, act):
    """A prepared transaction or a replaced connection is the failure of the message: the redrive
    neither waits for its own lock nor ends, and the message stays parked with its error."""
    trouble.faults.clear()
    trouble.do(lambda payload, message: act())
    redriven = redrives.redrive(trouble.group, key="b")
    parked = ParkedMessage.objects.get(position=trouble.positions[1])

    assert (redriven.handled, len(redriven.failed), redriven.remaining) == (0, 1, 2)
    assert "handler" in parked.error
