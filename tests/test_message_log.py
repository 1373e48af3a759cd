"""The log: appending, the horizon, and reading a range."""

from __future__ import annotations

import datetime

import pytest
from django.db import connection, transaction

import outbox
from outbox import message_log
from outbox.models import SLOTS, Message
from tests.support.harness import execute, insert, value
from tests.support.processes import driver
from tests.support.publishing import CHANNEL, publish

pytestmark = pytest.mark.django_db(transaction=True)

ALL = (0, SLOTS - 1)


def read(channel=CHANNEL, after=0, until=2**62, slots=ALL, most=1000):
    rows = message_log.read("default", channel, after=after, until=until, slots=slots, most=most)
    return [row[0] for row in rows]


def test_nothing_is_drawn_yet(connect):
    """Before the first message the last position and the horizon are one below the first."""
    execute(connect(), "ALTER SEQUENCE outbox_message_position_seq RESTART WITH 500")

    assert message_log.last_position("default") == 499
    assert message_log.horizon("default") == 499
    assert publish("a") == [500]
    assert message_log.last_position("default") == message_log.horizon("default") == 500


def test_positions_rise_over_all_channels():
    """One sequence numbers the messages of every channel."""
    positions = [*publish("a"), *publish("b", channel="other"), *publish("c")]

    assert positions == sorted(set(positions))
    assert read() == [positions[0], positions[2]]
    assert read("other") == [positions[1]]
    assert read("nothing") == []


def test_a_range_is_open_below_and_closed_above():
    """`after` is left out, `until` is taken in."""
    first, second, third = publish("a", "b", "c")

    assert read(after=first, until=third) == [second, third]
    assert read(after=first, until=second) == [second]
    assert read(after=second, until=second) == []
    assert read(most=2) == [first, second]


def test_slots_divide_a_channel():
    """Each message lies in one slot; without a key it is slot 0; the ranges hold each message once."""
    positions = publish(*map(str, range(50)), None)
    ranges = [(slot, slot + SLOTS // 4 - 1) for slot in range(0, SLOTS, SLOTS // 4)]
    parts = [read(slots=slots) for slots in ranges]

    assert sorted(position for part in parts for position in part) == positions
    assert all(part == sorted(part) and part for part in parts)
    assert positions[-1] in read(slots=(0, 0))
    for message in Message.objects.all():
        assert message.position in read(slots=(message.slot, message.slot))


def test_the_slot_is_the_hash_of_the_key(connect):
    """The low 15 bits, so that a text has the same slot in every database."""
    publish("order-17", "ä", "")
    expected = "(hashtextextended(key, 0) & 32767)"

    assert value(connect(), f"SELECT bool_and(slot = {expected}) FROM outbox_message")


def test_a_row_holds_texts(connect):
    """Payload, headers and time come as text: they are decoded only for the messages that are
    handled."""
    with transaction.atomic():
        outbox.publish_raw(CHANNEL, "Raw", {"b": 1, "a": "ä"}, key="k", headers={"n": 1})
    (row,) = message_log.read("default", CHANNEL, after=0, until=2**62, slots=ALL, most=5)

    position, key, type_name, payload, headers, created_at = row
    assert (position, key, type_name) == (Message.objects.get().position, "k", "Raw")
    assert (payload, headers) == ('{"b":1,"a":"ä"}', '{"n": 1}')
    assert datetime.datetime.fromisoformat(created_at) == Message.objects.get().created_at


WRITTEN = '{"z": 1.10, "a": 123456789012345678901234567890, "a": [1e400, {"B" : null}]}'


INSERT_RAW = "INSERT INTO outbox_message (channel, type, payload) VALUES (%s, %s, %s)"


def test_a_payload_is_stored_as_it_was_written(connect):
    """The order of names, each digit and each space of it."""
    execute(connect(), INSERT_RAW, CHANNEL, "t", WRITTEN)
    (row,) = message_log.read("default", CHANNEL, after=0, until=2**62, slots=ALL, most=5)

    assert row[3] == WRITTEN


@pytest.mark.parametrize("escape", [r"\u0000", r"a\ud800", r"\\\u0000"])
def test_an_escape_that_text_cannot_hold_is_refused(connect, escape):
    """Each program that reads the log can read the payload as text or jsonb."""
    session = connect()
    with pytest.raises(driver.DataError, match="Unicode"):
        execute(session, INSERT_RAW, CHANNEL, "t", f'["{escape}"]')
    execute(session, INSERT_RAW, CHANNEL, "t", r'["\\u0000", "\u001f", "\ud83d\ude00"]')

    assert Message.objects.get().payload == ["\\u0000", "\x1f", "\U0001f600"]


def test_payloads_are_found_and_read_by_the_orm(connect):
    """Lookups of a JSONField."""
    stored = {"id": 7, "lines": [{"sku": "a"}], "total": "1.50"}
    with transaction.atomic():
        outbox.publish_raw(CHANNEL, "order", stored)

    for lookup in (
        {"payload__id": 7},
        {"payload__id__gte": 7},
        {"payload__lines__0__sku": "a"},
        {"payload__has_key": "total"},
        {"payload__contains": {"id": 7}},
        {"payload": {"total": "1.50", "lines": [{"sku": "a"}], "id": 7}},
    ):
        assert Message.objects.get(**lookup).payload == stored, lookup
    assert not Message.objects.filter(payload__id=8).exists()
    assert Message.objects.values_list("payload__lines__0__sku", "payload").get() == ("a", stored)


def test_the_horizon_stops_at_an_open_publisher(connect):
    """Nothing above the floor of a transaction that may still publish."""
    publish("a")
    before, session = message_log.horizon("default"), connect()
    execute(session, "BEGIN")
    insert(session)
    publish("b")

    assert message_log.horizon("default") == before
    assert message_log.last_position("default") == before + 2
    execute(session, "COMMIT")
    assert message_log.horizon("default") == before + 2


def test_the_own_floor_can_be_left_out(connect):
    """A test that publishes and consumes in one transaction sees its own rows; the floors of others
    count even so."""
    with transaction.atomic():
        before = message_log.horizon("default")
        outbox.publish_raw(CHANNEL, "Raw", 1)

        assert message_log.horizon("default") == before
        assert message_log.horizon("default", count_own_floor=False) == before + 1
        session = connect()
        execute(session, "BEGIN")
        insert(session)
        outbox.publish_raw(CHANNEL, "Raw", 1)
        assert message_log.horizon("default", count_own_floor=False) == before + 1
        execute(session, "ROLLBACK")
        transaction.set_rollback(True)


def test_one_statement_appends_a_batch(django_assert_num_queries):
    """However many messages there are."""
    with transaction.atomic(), django_assert_num_queries(1), connection.cursor():
        outbox.publish_many([Numbered(number) for number in range(100)])

    assert [m.payload["number"] for m in Message.objects.order_by("position")] == list(range(100))


class Numbered(outbox.Event, channel="log", key="number"):
    number: int
