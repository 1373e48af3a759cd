"""Observers of publishing and handling: what they do wrong harms nothing that they observe."""

from __future__ import annotations

import contextlib
import logging
from decimal import Decimal

import pytest
from django.db import transaction

import outbox
from outbox import observers
from outbox.models import Message
from outbox.monitoring.tallies import Tallies
from tests.bank.models import Deposited, Opened
from tests.library.models import Author
from tests.shop.events import OrderPlaced
from tests.support.publishing import publish

pytestmark = pytest.mark.django_db(transaction=True)


class Broken(Exception):
    """What an observer raises."""


def taken_by(facts):
    """What the observed call takes: nothing where the facts name a group, else all of them."""
    return () if isinstance(facts[0], str) else facts


def before(run, *facts):
    """Raise before the observed call."""
    raise Broken


def after(run, *facts):
    """Raise after the observed call, also when that failed."""
    with contextlib.suppress(Exception):
        run(*taken_by(facts))
    raise Broken


def instead(run, *facts):
    """Return something else, without the call."""
    return "something else"


def silent(run, *facts):
    """Return something else, also when the call failed."""
    with contextlib.suppress(Exception):
        run(*taken_by(facts))
    return "something else"


FAULTS = pytest.mark.parametrize("fault", [before, after, instead, silent])
REPORTED = (before, after)


@pytest.fixture
def observe():
    """Attach observers until the test ends."""
    attached = []

    def attach(name, observer):
        getattr(observers, name).append(observer)
        attached.append((name, observer))

    yield attach
    for name, observer in attached:
        getattr(observers, name).remove(observer)


@pytest.fixture
def reports(caplog, monkeypatch):
    """The failures of observers that were logged."""
    monkeypatch.setattr(observers, "_reported", set())
    caplog.set_level(logging.ERROR, "outbox.monitoring")
    return lambda: [each for each in caplog.records if "what it observes goes on" in each.message]


@FAULTS
def test_a_broken_observer_fails_no_publish(observe, reports, fault):
    """Each message is stored once and its position returned: alone, raw, in a batch, in a stream."""
    observe("around_publish", fault)
    with transaction.atomic():
        found = [
            outbox.publish(OrderPlaced(order_id=1)),
            outbox.publish_raw("trouble", "Order", {"number": 1}),
            *outbox.publish_many([OrderPlaced(order_id=2), OrderPlaced(order_id=3)]),
            outbox.publish(Opened(account="a", owner="Ann"), expected=0),
        ]

    assert found == list(Message.objects.order_by("position").values_list("position", flat=True))
    assert len(reports()) == (fault in REPORTED)


@FAULTS
def test_a_broken_observer_hides_no_error_of_a_publish(observe, reports, fault):
    """A conflict of a stream reaches the caller, whatever the observer makes of it."""
    observe("around_publish", fault)
    with transaction.atomic():
        outbox.publish(Opened(account="a", owner="Ann"), expected=0)

    with pytest.raises(outbox.StreamConflict), transaction.atomic():
        outbox.publish(Deposited(account="a", amount=Decimal(5)), expected=7)


@FAULTS
@pytest.mark.parametrize("around", ["around_call", "around_handling"])
def test_a_broken_observer_fails_no_handler(observe, reports, script, around, fault):
    """Each message is handled once, and nothing is parked but what the handler itself refuses."""
    made = script(retry=outbox.Retry(max_attempts=1))
    made.faults = {"b": ValueError("no")}
    positions = publish("a", "b", "c")
    observe(around, fault)
    made.drain()

    assert made.effects() == [positions[0], positions[2]]
    assert made.parked() == [(positions[1], "failed")]
    assert {each.attempt for each in made.runs} == {1}
    assert len(reports()) == (fault in REPORTED)


def test_an_observer_that_is_called_afterwards_fails_nothing(observe, reports, script):
    """Neither after the calls of handlers nor after a batch nor for the headers of a context."""

    def break_down(*facts):
        raise Broken

    made = script()
    for name in ("after_calls", "after_batch", "trace_headers"):
        observe(name, break_down)
    positions = publish("a", "b")
    made.drain()
    with transaction.atomic(), outbox.context(user="ann"):
        Author.objects.create(name="Ann")

    assert made.effects() == positions
    assert Message.objects.latest("position").headers["user"] == "ann"


def test_a_failure_is_logged_once_for_each_kind(observe, reports):
    """Once for an observer and a class of exception, with the traceback."""
    errors = iter([Broken("1"), Broken("2"), KeyError("3"), Broken("4")])

    def break_down(run, drafts):
        raise next(errors)

    observe("around_publish", break_down)
    publish("a", "b", "c", "d")

    assert [each.exc_info[0] for each in reports()] == [Broken, KeyError]
    assert "break_down" in reports()[0].message


def test_a_batch_without_a_call_is_counted(observe, script):
    """Messages that no handler wants are moved past, with the numbers on."""
    made = script(on_unknown="skip")
    counted = Tallies()
    observe("after_calls", counted.count_calls)
    observe("after_batch", counted.count_batch)
    with transaction.atomic():
        outbox.publish_raw("trouble", "Unwanted", {})
    made.drain()

    assert counted.counters["messages_handled", "scripted", "trouble"] == 1
    assert made.parked() == []


def test_tallies_that_cannot_be_written_end_no_worker(tmp_path, reports):
    """As on a full disk: reported once."""
    tallies = Tallies(tmp_path / "gone" / "worker-1")
    tallies.turn()
    tallies.write()

    assert len(reports()) == 1
