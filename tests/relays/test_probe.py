"""`outbox relay test`, and the destination in `describe`."""

from __future__ import annotations

import io

import pytest
from django.core.management import CommandError, call_command

import outbox
from outbox.relays import sink as sinks
from outbox.worker import Worker
from tests.relays.recording import Recording
from tests.support.publishing import publish

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def sink():
    return Recording(knows_its_position=True)


def run(*arguments):
    output = io.StringIO()
    call_command("outbox", *arguments, stdout=output, stderr=output)
    return output.getvalue()


def test_a_test_message_is_marked_and_its_answer_is_shown(sink):
    """The destination gets a record that no log has, and the verb says that it was confirmed."""
    outbox.Relay("copy", channels=["trouble"], to=sink)
    shown = run("relay", "test", "copy")

    assert "confirmed" in shown
    assert sink.records[0].attributes["outboxtest"] == "true"
    assert "sequence" not in sink.records[0].attributes


def test_a_test_message_that_is_not_taken_ends_with_exit_code_3(sink):
    """The verb shows what the destination said."""
    outbox.Relay("copy", channels=["trouble"], to=sink)
    sink.is_down = True
    with pytest.raises(CommandError, match="Not taken") as caught:
        run("relay", "test", "copy")

    assert caught.value.returncode == 3


def test_a_group_that_is_no_relay_is_a_misuse():
    """Exit code 2, and the error says what the group is."""
    outbox.ConsumerGroup("plain", channels=["trouble"])
    with pytest.raises(CommandError, match="not a relay") as caught:
        run("relay", "test", "plain")

    assert caught.value.returncode == 2


def test_describe_shows_where_the_destination_stands(sink):
    """Its last position, or why it does not answer."""
    positions = publish("a", "b")
    Worker([outbox.Relay("copy", channels=["trouble"], to=sink)]).drain()
    up = run("describe", "copy")
    sink.position = lambda origin, to: (_ for _ in ()).throw(sinks.unavailable("no answer"))
    down = run("describe", "copy")

    assert str(positions[-1]) in up.splitlines()[-1]
    assert "reachable" in up
    assert "no answer" in down
