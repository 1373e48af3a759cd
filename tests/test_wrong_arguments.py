"""What the public functions say to arguments of a wrong type: always one of the library's errors."""

from __future__ import annotations

import contextlib

import pytest
from django.db import transaction

import outbox
from outbox import testing
from outbox.exceptions import OutboxError
from tests.shop.events import OrderPlaced

pytestmark = pytest.mark.django_db(transaction=True)

OUTSIDE = ("wait_for", "caught_up", "drain")
"""What cannot be called in a transaction."""
WRONG = [1, 2.5, b"x", [], {}, set(), object(), "a\0b", "\ud800"]


def event():
    return OrderPlaced(order_id=1)


def enter(block):
    with block:
        pass


CALLS = {
    "publish using": lambda value: outbox.publish(event(), using=value),
    "publish_many": lambda value: outbox.publish_many([value]),
    "publish_many of one": lambda value: outbox.publish_many(7),
    "publish_many using": lambda value: outbox.publish_many([event()], using=value),
    "context using": lambda value: enter(outbox.context(using=value, user="ann")),
    "stream": lambda value: outbox.stream(value, "17"),
    "guard": lambda value: enter(outbox.guard(value)),
    "guard of a channel": lambda value: enter(outbox.guard((value, "17"))),
    "wait_for": lambda value: outbox.wait_for(value, 1, timeout=0),
    "wait_for position": lambda value: outbox.wait_for("billing", str(value), timeout=0),
    "wait_for timeout": lambda value: outbox.wait_for("billing", 1, timeout=float("nan")),
    "caught_up": lambda value: enter(outbox.caught_up(value)),
    "caught_up timeout": lambda value: enter(outbox.caught_up("billing", timeout=str(value))),
    "drain": lambda value: testing.drain(value),
    "published": lambda value: len(testing.published(value)),
    "capture on": lambda value: outbox.capture(channel="c", on=value),
    "capture key": lambda value: outbox.capture(channel="c", key=[1]),
    "capture fields": lambda value: outbox.capture(channel="c", fields=8),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_get_an_error_of_the_library(name):
    """Neither an error of Python's about its insides nor one of the database, and no endless wait."""
    block = contextlib.nullcontext if name.startswith(OUTSIDE) else transaction.atomic
    found = []
    for value in WRONG:
        with pytest.raises(OutboxError) as caught, block():
            CALLS[name](value)
        found.append(str(caught.value))

    assert all(found)
