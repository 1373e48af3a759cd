"""Promise 6: one group's lag, failure, pause, replay or parallelism never touches another's."""

import datetime

import pytest
from django.core.management import call_command
from django.db import transaction
from django.utils import timezone

import outbox
from outbox.models import Cursor
from tests.shop.events import PaymentTaken
from tests.shop.models import Fault
from tests.support.harness import cursor_of, drain, exhaust, handled, stored, worker
from tests.support.processes import wait_until
from tests.support.publishing import publish_orders

pytestmark = pytest.mark.django_db(transaction=True)


def rows_of(group):
    """Everything that the database knows about a group's cursors."""
    return list(Cursor.objects.filter(group=group).order_by("pk").values())


def test_every_group_handles_every_message_of_its_channels():
    """Groups do not share messages out between them: each handles them all."""
    positions = publish_orders(notes=["", ""])
    with transaction.atomic():
        payment = outbox.publish(PaymentTaken(order_id=1))
    for group in ("billing", "shipping", "audit", "crew"):
        drain(group)

    assert handled("billing") == positions
    assert handled("shipping") == positions
    assert sorted(handled("crew")) == positions
    assert sorted(handled("audit")) == [*positions, payment]


def test_a_group_that_was_never_started_holds_up_nobody():
    """A group without any worker neither delays others nor loses what it has not yet read."""
    positions = publish_orders(notes=["", ""])
    drain("billing")
    drain("shipping")

    assert handled("billing") == positions
    assert handled("shipping") == positions


def test_a_failing_group_holds_up_no_other():
    """While one group backs off, another one handles the same messages to the end."""
    Fault.objects.create(group="billing")
    positions = publish_orders(notes=["", "fragile", ""])
    drain("billing")
    drain("shipping")

    assert handled("billing") == positions[:1]
    assert handled("shipping") == positions
    assert cursor_of("billing").attempts == 1
    assert cursor_of("shipping").attempts == 0


def test_a_failing_group_holds_up_no_other_of_the_same_worker():
    """A worker that serves a failing group still serves its other groups, whatever the order of
    their names."""
    Fault.objects.create(group="billing")
    positions = publish_orders(notes=["fragile", "", ""])
    both = worker("billing", "shipping", batch_size=1)
    exhaust(both)

    assert handled("billing") == []
    assert handled("shipping") == positions


def test_a_busy_group_holds_up_no_other(background, close_gate):
    """While one group is in the middle of a batch, another one handles the same messages to the
    end."""
    gate = close_gate("billing")
    positions = publish_orders(notes=["", "gate", ""])
    busy = background(worker("billing").run_once)
    wait_until(gate.waiting)
    drain("shipping")
    handled_meanwhile = handled("shipping")
    gate.open()
    busy.result()
    drain("billing")

    assert handled_meanwhile == positions
    assert handled("billing") == positions


def test_a_lagging_group_holds_up_no_other():
    """A group that is far behind and one that is up to date read the same log at their own
    cursors."""
    publish_orders(notes=["", "", "", ""])
    slow = worker("billing", batch_size=1)
    slow.run_once()
    drain("shipping")
    publish_orders(notes=[""])
    drain("shipping")

    assert handled("shipping") == stored()
    assert handled("billing") == stored()[:1]
    assert exhaust(slow) == 4


def test_a_backlog_of_one_group_does_not_starve_another_of_the_same_worker():
    """A worker serves the group that waited longest, not the one that has most to do."""
    positions = publish_orders(notes=["", "", "", ""])
    both = worker("billing", "shipping", batch_size=1)
    for _ in range(4):
        both.run_once()

    assert handled("billing") == positions[:2]
    assert handled("shipping") == positions[:2]


def test_a_paused_group_holds_up_no_other():
    """A paused group handles nothing, loses nothing, and delays nobody."""
    drain("billing")
    Cursor.objects.filter(group="billing").update(
        paused_until=timezone.now() + datetime.timedelta(days=1)
    )
    positions = publish_orders(notes=["", ""])
    drain("billing")
    drain("shipping")
    handled_meanwhile = handled("billing")
    Cursor.objects.filter(group="billing").update(paused_until=None)
    drain("billing")

    assert handled_meanwhile == []
    assert handled("shipping") == positions
    assert handled("billing") == positions


def test_a_replay_touches_no_other_group():
    """Resetting one group changes nothing about another, and makes nobody else handle a message
    again."""
    positions = publish_orders(notes=["", ""])
    drain("billing")
    drain("shipping")
    before = rows_of("shipping")
    call_command("outbox", "reset", "billing", "--to-earliest", "--execute")
    after_reset = rows_of("shipping")
    drain("shipping")
    drain("billing")

    assert after_reset == before
    assert handled("shipping") == positions
    assert handled("billing") == positions * 2


def test_consuming_writes_only_to_the_groups_own_cursors():
    """A group that handles, fails and retries leaves every other group's rows as they were."""
    publish_orders(notes=["", ""])
    drain("shipping")
    before = rows_of("shipping")
    Fault.objects.create(group="billing")
    publish_orders(notes=["fragile", ""])
    drain("billing")
    drain("crew")

    assert rows_of("shipping") == before


def test_parallelism_is_a_groups_own():
    """Four ranges of one group beside one range of another: both see every message."""
    positions = publish_orders(notes=["", "", "", "", "", ""])
    drain("crew")
    drain("billing")

    assert Cursor.objects.filter(group="crew").count() == 4
    assert Cursor.objects.filter(group="billing").count() == 1
    assert handled("billing") == positions
    assert sorted(handled("crew")) == positions


def test_a_channel_of_a_group_holds_up_no_other_channel():
    """A group that fails in one of its channels goes on in the other."""
    Fault.objects.create(group="audit")
    publish_orders(notes=["fragile"])
    with transaction.atomic():
        payment = outbox.publish(PaymentTaken(order_id=1))
    drain("audit")

    assert handled("audit") == [payment]
