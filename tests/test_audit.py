"""The audit: it finds what was passed over or handled twice, and nothing else."""

import time

import pytest
from django.db import connection, transaction

import outbox
from outbox.exceptions import UnknownGroup
from outbox.models import ChannelRetention, Message
from outbox.operations import redrives, replay, scaling
from outbox.operations.audit import audit
from tests.support import failing
from tests.support.amounts import amount
from tests.support.harness import Background, Gate, drain, worker
from tests.support.processes import wait_until
from tests.support.publishing import publish, publish_orders

pytestmark = pytest.mark.django_db(transaction=True)

MESSAGES = amount(5_000, 1_000_000)


def account(group="billing", channel="orders"):
    (found,) = (each for each in audit(group).channels if each.channel == channel)
    return found


def run(statement, *parameters):
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def test_a_healthy_run_passes():
    """The messages moved past are as many as those processed."""
    publish_orders(30)
    drain("billing")

    assert audit("billing").passed
    assert (account().messages, account().processed, account().difference) == (30, 30, 0)


def test_messages_not_reached_yet_are_no_difference():
    """The audit holds in the middle of a backlog."""
    publish_orders(30)
    worker("billing", batch_size=7).run_once()

    assert audit("billing").passed
    assert account().messages == 7


def test_what_retention_removed_is_no_difference():
    """Messages that a group handled and retention then removed are not taken for handled twice; what
    was passed over still shows."""
    positions = publish_orders(10)
    drain("billing")
    run("UPDATE outbox_cursor SET processed = processed + 5 WHERE \"group\" = 'billing'")
    found_before = audit("billing").passed
    ChannelRetention.objects.create(channel="orders", removed_to=positions[0])

    assert not found_before
    assert audit("billing").passed
    assert account().is_trimmed
    run("UPDATE outbox_cursor SET processed = processed - 7 WHERE \"group\" = 'billing'")
    assert account().findings


def test_a_planted_skip_is_found():
    """A cursor that was moved on by hand passed three messages over."""
    positions = publish_orders(10)
    worker("billing", batch_size=4).run_once()
    run('UPDATE outbox_cursor SET position = %s WHERE "group" = %s', positions[6], "billing")
    drain("billing")

    assert not audit("billing").passed
    assert account().difference == 3
    assert account().findings == ["3 passed over: neither processed nor skipped nor parked"]


def test_a_planted_double_is_found():
    """A cursor that was moved back by hand let two messages be handled twice."""
    positions = publish_orders(10)
    drain("billing")
    run(
        'UPDATE outbox_cursor SET position = %s, generation = generation + 1 WHERE "group" = %s',
        positions[7],
        "billing",
    )
    drain("billing")

    assert account().difference == -2
    assert account().findings == ["2 more processed, skipped or parked than there are messages"]


@pytest.fixture
def parked(script):
    """A group that has parked the messages of two of its eight keys: two failed, two are behind
    them; one message has no handler."""
    once = outbox.Retry(max_attempts=1)
    made = script("audited", retry=once, parallelism=2, on_unknown="skip")
    made.faults = {"1": ValueError("not now"), "2": ValueError("not now")}
    publish(*"0123456701", "2")
    with transaction.atomic():
        outbox.publish_raw(failing.CHANNEL, "Unknown", {}, key="5")
    made.drain()
    return made


def test_parked_and_skipped_messages_are_in_the_account(parked):
    """Four of twelve messages are parked, one has no handler."""
    found = account("audited", "trouble")

    assert audit("audited").passed
    assert (found.messages, found.processed, found.skipped, found.parked) == (12, 7, 1, 4)


def test_a_lost_parked_message_is_found(parked):
    """A parked message that was deleted by hand is missing from the account and from the counter."""
    run("DELETE FROM outbox_parked_message WHERE key = '1'")
    found = account("audited", "trouble")

    assert found.difference == 2
    assert any("counts" in text and "parked messages; there are" in text for text in found.findings)


def test_redrive_and_discard_keep_the_account(parked):
    """What leaves the parked messages is processed or skipped from then on."""
    del parked.faults["2"]
    redrives.redrive("audited", key="2")
    first = redrives.list_parked("audited")[0]
    redrives.discard("audited", first.position, reason="test")
    found = account("audited", "trouble")

    assert audit("audited").passed
    assert (found.processed, found.skipped, found.parked) == (9, 2, 1)


def test_a_reset_begins_a_new_account(parked):
    """Only what lies above the new position counts from then on."""
    middle = account("audited", "trouble").messages // 2
    positions = list(Message.objects.values_list("position", flat=True))
    replay.reset("audited", position=positions[middle - 1])
    before = account("audited", "trouble")
    drain("audited")

    assert (before.messages, before.processed, before.difference) == (0, 0, 0)
    assert account("audited", "trouble").messages == 6
    assert audit("audited").passed


def test_splits_and_merges_keep_the_account(parked):
    """The sums of the channel stay exact, whatever half a counter is left on."""
    for to in (7, 3, 1):
        scaling.scale(parked.group, to, timeout=0)
        assert audit("audited").passed


def test_slots_without_cursor_are_found():
    """Messages of these slots would never be handled; no counter shows that."""
    publish_orders(50)
    drain("crew")
    run("DELETE FROM outbox_cursor WHERE \"group\" = 'crew' AND slot_from = 8192")
    run("UPDATE outbox_cursor SET slot_to = 30000 WHERE slot_to = 32767")

    assert "no cursor covers the slots 8192 to 16383" in account("crew").findings
    assert "no cursor covers the slots 30001 to 32767" in account("crew").findings


def test_slots_with_two_cursors_are_found():
    """Messages of these slots would be handled twice."""
    publish_orders(5)
    drain("crew")
    run("UPDATE outbox_cursor SET slot_from = 8000 WHERE slot_from = 8192")

    assert "two cursors cover the slots 8000 to 8191" in account("crew").findings


def test_the_audit_holds_while_a_worker_is_at_it(connect):
    """Cursors, parked messages and log are read in one snapshot, so a batch in hand changes
    nothing."""
    gate = Gate(connect(), "billing")
    publish_orders(3)
    publish_orders(1, "gate")
    working = Background(worker("billing").run_once)
    wait_until(gate.waiting)
    during = audit("billing")
    gate.open()
    working.result()

    assert during.passed
    assert account().messages == 4


def test_an_unknown_group_cannot_be_audited():
    """The error lists the known groups."""
    with pytest.raises(UnknownGroup, match="Known groups: "):
        audit("nobody")


def test_many_messages_are_audited_in_seconds():
    """A healthy run of a million messages takes less than 10 s (the long form; the short one has 5,000)."""
    run(
        "INSERT INTO outbox_message (channel, key, type, payload)"
        " SELECT 'bulk', n::text, 'Bulk', '{}' FROM generate_series(1, %s) AS n",
        MESSAGES,
    )
    drain("bulk-a")
    began = time.monotonic()
    found = account("bulk-a", "bulk")
    seconds = time.monotonic() - began
    print(f"{MESSAGES} messages audited in {seconds:.2f} s")

    assert (found.messages, found.difference) == (MESSAGES, 0)
    assert seconds < 10
