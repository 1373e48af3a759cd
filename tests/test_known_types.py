"""A type that the code does not know belongs to another release; one it knows may be passed over."""

from __future__ import annotations

import logging

import pytest
from django.db import transaction

import outbox
from outbox.consuming import known_types
from outbox.exceptions import InvalidGroup
from outbox.operations import redrives, status
from outbox.testing import isolated_groups
from outbox.worker import Worker
from tests.support.failing import account
from tests.support.publishing import CHANNEL

pytestmark = pytest.mark.django_db(transaction=True)


class Known(outbox.Event, channel=CHANNEL):
    number: int


@pytest.fixture(autouse=True)
def forget_warnings():
    known_types._warned.clear()


def publish_types(*types):
    with transaction.atomic():
        return [outbox.publish_raw(CHANNEL, each, {"number": 1}, key=each) for each in types]


def test_an_unknown_type_waits_for_the_release_that_knows_it(script, caplog):
    """It is not passed over and not counted as a failed attempt; a warning names it once. The code
    that knows it handles it, and all that came after it."""
    old = script()
    positions = publish_types("Order", "Cancelled", "Order")
    with caplog.at_level(logging.WARNING, "outbox"):
        for _ in range(3):
            old.drain()
            old.due()
    waiting = old.cursor()
    new = script()
    new.group.handler("Cancelled")(new.handle)
    new.drain()

    assert (waiting.position, waiting.attempts) == (positions[0], 0)
    assert waiting.failed_position == positions[1]
    assert "does not know the type 'Cancelled'" in waiting.last_error
    assert caplog.text.count("does not know the type 'Cancelled'") == 1
    assert [message.position for message in new.runs] == positions[1:]
    assert {message.attempt for message in new.runs} == {1}
    assert account("scripted") == (3, 3)


def test_a_known_type_without_a_handler_is_passed_over(script, caplog):
    """An event class of the channel, a name in ignores(): the group does not want it."""
    billing = script()
    billing.group.ignores("Legacy")
    publish_types("Known", "Legacy", "Order")
    billing.drain()

    assert (billing.cursor().skipped, billing.cursor().processed) == (2, 1)
    assert "does not know" not in caplog.text


def test_a_captured_model_is_a_known_type():
    """Messages about a captured model may be passed over, too."""
    with isolated_groups():
        group = outbox.ConsumerGroup("reader", ["authors"])

    assert known_types.is_known(group, "authors", "library.Author")
    assert not known_types.is_known(group, "authors", "library.Autor")


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_a_group_may_skip_or_park_unknown_types(script, delivery):
    """on_unknown="skip" counts them as skipped; "park" parks them with their keys, at once."""
    skips = script("skips", on_unknown="skip", delivery=delivery)
    parks = script("parks", on_unknown="park", delivery=delivery, on_failure="halt")
    positions = publish_types("Order", "Cancelled", "Order")
    skips.drain()
    parks.drain()

    assert (skips.cursor().skipped, skips.cursor().processed) == (1, 2)
    assert parks.parked() == [(positions[1], "unknown")]
    assert parks.cursor().processed == 2


def test_a_parked_message_of_an_unknown_type_is_not_dropped_by_a_redrive(script):
    """A redrive by code that does not know the type leaves it parked."""
    billing = script(on_unknown="park")
    (position,) = publish_types("Cancelled")
    billing.drain()
    redriven = redrives.redrive(billing.group, everything=True)
    billing.group.handler("Cancelled")(billing.handle)
    again = redrives.redrive(billing.group, everything=True)

    assert (redriven.handled, redriven.skipped, len(redriven.failed)) == (0, 0, 1)
    assert again.handled == 1
    assert billing.effects() == [position]


def test_on_unknown_is_checked():
    """A wrong word is refused where the group is declared."""
    with pytest.raises(InvalidGroup, match="on_unknown"):
        outbox.ConsumerGroup("wrong", [CHANNEL], on_unknown="ignore")


def test_other_messages_of_a_worker_go_on(script):
    """A group that waits at an unknown type holds back no other group of the worker."""
    waits, goes_on = script("waits"), script("goes-on", on_unknown="skip")
    positions = publish_types("Cancelled", "Order")
    Worker([waits.group, goes_on.group]).drain()

    assert goes_on.effects() == positions[1:]
    assert waits.effects() == []


def test_describe_counts_what_was_passed_over_by_type(script):
    """The types without a handler, of the latest messages below the group's position."""
    billing = script()
    billing.group.ignores("Legacy")
    publish_types("Known", "Legacy", "Order", "Known")
    billing.drain()

    assert status.describe(billing.group).skipped_types == {"Known": 2, "Legacy": 1}
