"""Each sink against its real server."""

from __future__ import annotations

import contextlib

import pytest
from django.db import connection

import outbox
from outbox.consuming.cursors import SLOTS
from outbox.exceptions import DestinationUnavailable
from outbox.models import Cursor, ParkedMessage
from outbox.operations import replay
from outbox.relays import Origin, contract
from outbox.testing import sink_contract
from outbox.worker import Worker
from tests.support.harness import execute
from tests.support.publishing import publish

pytestmark = pytest.mark.django_db(transaction=True)


def relay(destination, **options):
    return outbox.Relay("copy", channels=["trouble"], to=destination.open_sink(), **options)


def positions(destination):
    return [each.sequence for each in destination.received("trouble")]


def test_each_sink_keeps_the_contract(destination):
    """Against the real server: in order, confirmed, resumed, refused with the limit, unavailable."""
    sink_contract(
        destination.open_sink,
        lambda: destination.received("orders"),
        too_large=destination.too_large,
        unreachable=destination.unreachable,
    )


def test_a_destination_that_is_down_parks_nothing(destination, monkeypatch):
    """The messages wait and arrive when the server is back."""
    wanted = publish("a", "b")
    sink = destination.open_sink()
    worker = Worker([outbox.Relay("copy", channels=["trouble"], to=sink)])
    worker.drain()
    destination.kill()
    wanted += publish("c", "a")
    with monkeypatch.context() as impatient:
        impatient.setattr(sink, "timeout", 1.0, raising=False)
        worker.drain()
    waiting = Cursor.objects.get(group="copy")
    destination.start()
    execute(connection, "UPDATE outbox_cursor SET retry_at = NULL")
    worker.drain()

    assert waiting.retry_at is not None
    assert waiting.attempts == 0
    assert not ParkedMessage.objects.exists()
    found = positions(destination)
    assert found[-2:] == wanted[-2:]
    assert destination.persists is False or found == wanted


def test_a_replay_is_sent_or_refused_as_the_table_says(destination, caplog):
    """After a reset the messages come again, or the destination refuses their ids, which are named."""
    wanted = publish("a", "b", "c")
    group = relay(destination)
    Worker([group]).drain()
    replay.reset(group, to_earliest=True)
    Worker([group]).drain()

    assert positions(destination) == wanted * (1 if destination.refuses_replays else 2)
    assert ("already" in caplog.text) == destination.refuses_replays
    assert not ParkedMessage.objects.exists()


def test_of_two_relays_at_once_the_late_one_adds_nothing(destination):
    """A relay that goes on with an old batch is fenced or refused, or its records are known by their ids."""
    if not destination.has_fence:
        pytest.skip(f"{type(destination).__name__} has no fence: the page says so")
    origin = Origin("contract", "orders", 0, SLOTS - 1, 1)
    late, next_one = destination.open_sink(), destination.open_sink()
    place = contract._place(late)
    batches = [
        [contract._record(origin, position, 20, place) for position in range(start, start + 3)]
        for start in (1000, 1003)
    ]
    late.position(origin, place)
    late.send(origin, batches[0])
    next_one.position(origin, place)
    next_one.send(origin, batches[1])
    with contextlib.suppress(DestinationUnavailable):
        late.send(origin, batches[1])
    late.close()
    next_one.close()

    assert [each.sequence for each in destination.received("orders")] == list(range(1000, 1006))
