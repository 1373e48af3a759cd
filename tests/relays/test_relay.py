"""The relay: a group that sends what it reads to a destination, and what happens when that fails."""

from __future__ import annotations

import datetime
import json
import re

import pytest
from django.db import connection

import outbox
from outbox.models import Cursor, Message, ParkedMessage
from outbox.operations import redrives, replay, scaling
from outbox.relays import DROP, File, Target
from outbox.testing import Received, sink_contract
from outbox.worker import Worker
from tests.relays.recording import Recording
from tests.support.harness import execute
from tests.support.publishing import publish, publish_order

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def sink():
    return Recording()


def relay(sink, **options):
    return outbox.Relay("copy", channels=options.pop("channels", ["trouble"]), to=sink, **options)


def drain(relay, worker=None):
    return (worker or Worker([relay])).drain()


def drain_and_die(relay):
    """Let a worker end after the destination has confirmed, and before its progress is written."""
    send = relay.to.send

    def send_and_die(origin, records):
        send(origin, records)
        raise KeyboardInterrupt

    relay.to.send = send_and_die
    with pytest.raises(KeyboardInterrupt):
        drain(relay)
    relay.to.send = send
    relay.to.close()


def try_again():
    execute(connection, "UPDATE outbox_cursor SET retry_at = NULL")


def parked():
    return list(ParkedMessage.objects.order_by("position").values_list("position", "reason"))


def test_a_relay_sends_what_was_published_in_order_with_cloudevents_attributes(sink):
    """A message of any type arrives with key, payload and the attributes of CloudEvents 1.0."""
    positions = publish("a", None, "b")
    drain(relay(sink))
    first, second, _ = sink.records

    assert sink.sent() == positions
    assert (first.to, first.key, json.loads(first.data)) == ("trouble", "a", {"number": 0})
    assert first.attributes == {
        "specversion": "1.0",
        "id": str(positions[0]),
        "source": "/outbox/trouble",
        "type": "Order",
        "time": first.attributes["time"],
        "datacontenttype": "application/json",
        "sequence": str(positions[0]).zfill(20),
        "outboxcursor": first.attributes["outboxcursor"],
        "subject": "a",
        "partitionkey": "a",
    }
    assert "subject" not in second.attributes
    assert Cursor.objects.get(group="copy").processed == 3


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/St_Johns", "Europe/Berlin"])
def test_the_time_is_as_rfc_3339_writes_it(sink, zone):
    """Date, T, time, and an offset of hours and minutes, in any time zone of the session."""
    publish("a")
    execute(connection, f"SET TIME ZONE '{zone}'")
    drain(relay(sink))
    execute(connection, "SET TIME ZONE 'UTC'")
    text = sink.records[0].attributes["time"]

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?[+-]\d\d:\d\d", text)
    assert datetime.datetime.fromisoformat(text) == Message.objects.get().created_at


def test_headers_and_the_trace_go_along(sink):
    """The headers of a message arrive as one attribute, its trace as CloudEvents names it."""
    from django.db import transaction

    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with transaction.atomic():
        outbox.publish_raw("trouble", "Order", {}, headers={"actor": "web", "traceparent": trace})
    drain(relay(sink))
    attributes = sink.records[0].attributes

    assert json.loads(attributes["outboxheaders"]) == {"actor": "web", "traceparent": trace}
    assert attributes["traceparent"] == trace


def test_a_relay_sends_events_that_this_code_knows_too(sink):
    """A declared event class makes no difference: the stored payload goes out."""
    position = publish_order(7)
    drain(relay(sink, channels=["orders"]))

    assert sink.sent() == [position]
    assert json.loads(sink.records[0].data)["order_id"] == 7


def test_the_routing_function_chooses_place_key_and_headers_or_drops(sink):
    """A name, a Target and DROP are the answers; what is dropped counts as handled."""
    positions = publish("a", "b", "c", "d")

    def route(message):
        return {
            "a": "elsewhere",
            "b": Target(key="other", headers={"x": "1"}),
            "c": DROP,
            "d": Target(to="{channel}.{type}", key=None),
        }[message.key]

    drain(relay(sink, route=route))

    assert [(each.to, each.key, dict(each.headers)) for each in sink.records] == [
        ("elsewhere", "a", {}),
        ("trouble", "other", {"x": "1"}),
        ("trouble.Order", None, {}),
    ]
    assert Cursor.objects.get(group="copy").processed == len(positions)


def test_a_routing_function_without_an_answer_parks_its_message_and_sends_the_others(sink):
    """None is no answer: a forgotten return statement loses no message."""
    first, second, third = publish("a", "b", "c")
    group = relay(
        sink,
        retry=outbox.Retry(max_attempts=1),
        route=lambda message: None if message.key == "b" else "x",
    )
    drain(group)

    assert sink.sent() == [first, third]
    assert parked() == [(second, "failed")]
    assert "outbox.relays.DROP" in ParkedMessage.objects.get().error


def test_a_refused_record_parks_with_its_key_and_is_sent_once(sink):
    """What comes before it is not sent again, what has its key waits, and others go on."""
    before, refused, behind, other = publish("a", "b", "b", "c")
    sink.refuses = {refused}
    drain(relay(sink))

    assert sink.sent() == [before, other]
    assert parked() == [(refused, "failed"), (behind, "blocked")]
    assert "no, not ever" in ParkedMessage.objects.get(position=refused).error
    assert sum(refused in call for call in sink.calls) == 1


def test_a_redrive_sends_the_parked_records(sink):
    """A parked message can be sent later although the cursor has moved past it."""
    before, refused, behind, other = publish("a", "b", "b", "c")
    sink.refuses = {refused}
    group = relay(sink)
    drain(group)
    sink.refuses = set()
    redrives.redrive(group, everything=True)

    assert sink.sent() == [before, other, refused, behind]
    assert parked() == []


def test_a_destination_that_is_down_parks_nothing_and_is_asked_less_and_less(sink):
    """The range waits with growing pauses, counts no attempt, and goes on where it stopped."""
    positions = publish("a", "b", "c")
    group, pauses = relay(sink), []
    sink.is_down = True
    worker = Worker([group])
    for _ in range(30):
        try_again()
        drain(group, worker)
        cursor = Cursor.objects.get(group="copy")
        pauses.append((cursor.retry_at - cursor.last_commit_at).total_seconds())
    failed = cursor
    sink.is_down = False
    try_again()
    drain(group, worker)

    assert failed.attempts == 0
    assert "down" in failed.last_error
    assert pauses[0] < pauses[-1]
    assert parked() == []
    assert sink.sent() == positions


def test_a_record_that_fails_with_its_destination_is_tried_where_it_stopped(sink):
    """What was confirmed before the destination went away is not sent again by the same worker."""
    positions = publish("a", "b", "c", "d")
    sink.down_at = positions[2]
    group = relay(sink)
    worker = Worker([group])
    drain(group, worker)
    after_the_failure = Cursor.objects.get(group="copy").position
    sink.down_at = None
    try_again()
    drain(group, worker)

    assert after_the_failure == positions[2] - 1
    assert sink.sent() == positions
    assert parked() == []


def test_an_error_that_the_sink_does_not_explain_parks_nothing(sink):
    """An exception of a client library is the destination's failure, not the message's."""
    positions = publish("a")
    group, worker = relay(sink), None
    send = sink.send
    sink.send = lambda origin, records: 1 / 0
    worker = Worker([group])
    for _ in range(15):
        try_again()
        drain(group, worker)
    sink.send = send
    try_again()
    drain(group, worker)

    assert parked() == []
    assert sink.sent() == positions


def test_a_destination_says_when_to_come_back(sink):
    """The seconds that the destination asks for are the pause."""
    publish("a")
    sink.down_at, sink.seconds = publish("b")[0], 3600.0
    drain(relay(sink))
    cursor = Cursor.objects.get(group="copy")

    assert cursor.retry_at is not None
    assert 3000 < (cursor.retry_at - cursor.last_commit_at).total_seconds() < 3700


def test_a_relay_resumes_at_the_point_that_the_destination_tells(sink):
    """What the destination has, and the cursor does not know of, is not sent again."""
    positions = publish("a", "b", "c")
    sink.knows_its_position = True
    drain_and_die(relay(sink))
    assert Cursor.objects.get(group="copy").processed == 0
    positions += publish("d")
    drain(relay(sink))

    assert sink.sent() == positions


def test_a_reset_sends_everything_again_marked_as_replayed(sink):
    """After a reset the resume point of before does not count."""
    positions = publish("a", "b")
    sink.knows_its_position = True
    group = relay(sink)
    drain(group)
    replay.reset(group, to_earliest=True)
    drain(group)

    assert sink.sent() == positions * 2
    assert "outboxreplayed" not in sink.records[0].attributes
    assert sink.records[2].attributes["outboxreplayed"] == "true"
    assert len({record.id for record in sink.records}) == 4


def test_a_relay_that_is_scaled_keeps_each_key_in_order(sink):
    """The ranges are sent one by one, each in order, and nothing is lost or doubled."""
    group = relay(sink)
    keys = [f"key-{number % 20}" for number in range(200)]
    first = publish(*keys[:100])
    drain(group)
    scaling.scale(group, 4, timeout=10)
    second = publish(*keys[100:])
    drain(group)
    by_key = {}
    for record in sink.records:
        by_key.setdefault(record.key, []).append(record.position)

    assert sorted(sink.sent()) == first + second
    assert all(positions == sorted(positions) for positions in by_key.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"to": "kafka"}, "is no sink"), ({"route": "x"}, "no function")],
)
def test_a_wrong_declaration_is_refused(sink, options, words):
    """The error names the option and what to write."""
    with pytest.raises(outbox.OutboxError, match=words):
        outbox.Relay("copy", channels=["trouble"], **{"to": sink, **options})


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines() if line.strip()]


def received(path):
    return [
        Received(
            int(line["attributes"]["sequence"]), line["key"], json.dumps(line["data"]).encode()
        )
        for line in (lines(path) if path.exists() else [])
        if "sequence" in line["attributes"]
    ]


def test_the_file_sink_keeps_the_contract(tmp_path):
    """The example of a sink passes the public contract."""
    path = tmp_path / "copy"
    sink_contract(
        lambda: File(str(path), max_bytes=1000),
        lambda: received(path),
        too_large=2000,
        unreachable=lambda: File(str(tmp_path / "nowhere" / "copy")),
    )


@pytest.mark.parametrize(
    "fault",
    [
        "forgets",
        "turns_round",
        "doubles",
        "claims_too_much",
        "takes_what_is_too_large",
        "is_silent",
    ],
)
def test_the_contract_finds_a_sink_that_breaks_it(tmp_path, fault):
    """Each kind of fault fails the contract."""
    path = tmp_path / "copy"

    class Broken(File):
        def send(self, origin, records):
            if fault == "is_silent" and "nowhere" in self.to:
                return
            if fault == "turns_round":
                records = records[::-1]
            if fault == "forgets":
                records = records[:-1]
            super().send(origin, [*records, *records] if fault == "doubles" else records)

        def position(self, origin, to):
            known = super().position(origin, to)
            return 10**6 if fault == "claims_too_much" else known

    limit = None if fault == "takes_what_is_too_large" else 1000
    with pytest.raises(AssertionError):
        sink_contract(
            lambda: Broken(str(path), max_bytes=limit),
            lambda: received(path),
            too_large=2000,
            unreachable=lambda: Broken(str(tmp_path / "nowhere" / "copy")),
        )


def test_an_unfinished_line_of_a_dead_relay_is_cut_off(tmp_path):
    """What a killed process wrote in part is sent again whole."""
    path = tmp_path / "copy"
    positions = publish("a", "b")
    drain_and_die(relay(File(str(path))))
    path.write_bytes(path.read_bytes()[:-10])
    drain(relay(File(str(path))))

    assert [int(line["attributes"]["sequence"]) for line in lines(path)] == positions


def test_a_second_relay_to_a_file_is_kept_out(tmp_path):
    """The second process waits, and nothing is written twice."""
    path = tmp_path / "copy"
    (position,) = publish("a")
    held = File(str(path))
    held.position(None, None)
    group = relay(File(str(path)))
    worker = Worker([group])
    drain(group, worker)
    waiting = Cursor.objects.get(group="copy").last_error
    held.close()
    try_again()
    drain(group, worker)

    assert "another process" in waiting
    assert [int(line["attributes"]["sequence"]) for line in lines(path)] == [position]
