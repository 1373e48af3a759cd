"""Publishing: what is stored, in which order, and what is refused."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.transaction import TransactionManagementError
from django.test import override_settings
from django.utils.connection import ConnectionDoesNotExist

import outbox
from outbox.exceptions import (
    InvalidChannel,
    InvalidContext,
    InvalidHeaders,
    InvalidTypeName,
    TransactionRequired,
    UnencodableValue,
)
from outbox.models import Message
from tests.shop.events import OrderPlaced, PackingRequested, PaymentTaken

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("in_atomic")]

EVENT = OrderPlaced(order_id=1)
PUBLISHING = [
    lambda **options: outbox.publish(EVENT, **options),
    lambda **options: outbox.publish_many([EVENT], **options),
    lambda **options: outbox.publish_many([], **options),
    lambda **options: outbox.publish_raw("orders", "OrderPlaced", {}, **options),
]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("publish", PUBLISHING)
def test_publishing_outside_a_transaction_is_refused(publish):
    """Outside atomic() the message could exist without its business change."""
    with pytest.raises(TransactionRequired) as caught:
        publish()

    assert caught.value.using == "default"
    assert "outside transaction.atomic() on database 'default'" in str(caught.value)
    assert "Wrap both in atomic(using='default'), or set OUTBOX[" in str(caught.value)
    assert not Message.objects.exists()


@pytest.mark.django_db(transaction=True)
@override_settings(OUTBOX={"REQUIRE_TRANSACTION": False})
def test_the_rule_can_be_turned_off():
    """With REQUIRE_TRANSACTION off each call is a transaction of its own."""
    positions = [outbox.publish(EVENT), *outbox.publish_many([EVENT, EVENT])]

    assert (
        list(Message.objects.order_by("position").values_list("position", flat=True)) == positions
    )


def test_what_is_stored():
    """A message has the event's channel, key, type and payload, the headers, and a position."""
    with transaction.atomic():
        position = outbox.publish(OrderPlaced(order_id=5, note="x"), headers={"actor": "web"})
        outbox.publish_raw(
            "imports", "Import", {"id": 1}, key="a", headers=MappingProxyType({"n": 1})
        )
    first, second = Message.objects.order_by("position")

    assert (first.position, first.channel, first.key, first.type) == (
        position,
        "orders",
        "5",
        "OrderPlaced",
    )
    assert (first.payload, first.headers) == ({"order_id": 5, "note": "x"}, {"actor": "web"})
    assert (second.channel, second.key, second.type) == ("imports", "a", "Import")
    assert (second.payload, second.headers) == ({"id": 1}, {"n": 1})
    assert second.position > first.position


@pytest.mark.parametrize("payload", [None, True, 5, "text", [], {}, [None]])
def test_a_raw_payload_is_any_json_value(witness, payload):
    """Also null, which is not the absence of a payload."""
    seen = witness("publisher-raw", "publisher-raw").of("Raw")
    outbox.publish_raw("publisher-raw", "Raw", payload)

    assert seen.drain() == [payload]


def test_a_megabyte_arrives(witness):
    """A payload of 1 MB is a message like any other, alone and in a batch."""
    seen = witness("publisher-large", "orders").of(OrderPlaced)
    large = OrderPlaced(order_id=1, note="ä€" * 500_000)
    outbox.publish(large)
    outbox.publish_many([large, EVENT])

    assert seen.drain() == [large, large, EVENT]


def test_ten_thousand_events_of_several_channels_keep_their_order(django_assert_num_queries):
    """One statement stores them all; the positions come back in the order of the events and rise."""
    kinds = (OrderPlaced, PaymentTaken, PackingRequested)
    batch = [kinds[number % 3](order_id=number) for number in range(10_000)]
    with django_assert_num_queries(1):
        positions = outbox.publish_many(iter(batch), headers={"n": 1})
    stored = Message.objects.order_by("position").values_list("position", "type", "key", "headers")

    assert positions == sorted(set(positions))
    assert list(stored) == [
        (position, type(event).__name__, str(event.order_id), {"n": 1})
        for position, event in zip(positions, batch, strict=True)
    ]


def test_nothing_to_publish():
    """An empty list gives an empty list, draws no position and holds back no reader."""
    assert outbox.publish_many([]) == []
    assert outbox.publish_many(event for event in ()) == []
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        )
        assert cursor.fetchone() == (0,)


@pytest.mark.parametrize("channel", ["", "x" * 64, None, 5, "a\0", "\ud800", ["orders"]])
def test_a_channel_is_text_of_1_to_63_characters(channel):
    """An empty or overlong channel is refused by name."""
    with pytest.raises(InvalidChannel) as caught:
        outbox.publish_raw(channel, "Raw", {})

    assert str(caught.value) == (
        f"{channel!r} is not a channel name: use text of 1 to 63 characters without NUL."
    )
    assert not Message.objects.exists()


@pytest.mark.parametrize("channel", ["x", "ä" * 63, "🚀 a:b", " "])
def test_any_other_text_is_a_channel(witness, channel):
    """63 characters, not bytes; whatever the alphabet."""
    seen = witness("publisher-channel", channel).of("Raw")
    outbox.publish_raw(channel, "Raw", 1)

    assert seen.drain() == [1]


@pytest.mark.parametrize("name", ["", "a\0", None, 5, "\ud800"])
def test_a_type_name_is_text(name):
    """An empty type name, or one that cannot be stored, is refused by name."""
    with pytest.raises(InvalidTypeName, match="is not the name of a message type: use text"):
        outbox.publish_raw("orders", name, {})

    assert not Message.objects.exists()


@pytest.mark.parametrize("headers", [["a"], "a", 5, [], ()])
@pytest.mark.parametrize("publish", PUBLISHING)
def test_headers_are_a_mapping(publish, headers):
    """Anything else is refused by name, also when it is empty."""
    with pytest.raises(InvalidHeaders) as caught:
        publish(headers=headers)

    assert str(caught.value) == f"{headers!r} cannot be headers: use a mapping."
    assert not Message.objects.exists()


def test_the_header_version_belongs_to_the_event_class():
    """A caller's own would make the payload unreadable; only publish_raw() may give a version."""
    with pytest.raises(
        InvalidHeaders, match='"version" is the event class\'s own: use another name'
    ):
        outbox.publish(EVENT, headers={"version": 1})
    with pytest.raises(
        InvalidHeaders, match='"version" is the event class\'s own: use another name'
    ):
        outbox.publish_many([EVENT], headers={"version": "2026-01"})
    for version in ("2026-01", 0, True, None, 1.5):
        with pytest.raises(InvalidHeaders, match="use a whole number from 1 on"):
            outbox.publish_raw("orders", "OrderPlaced", {}, headers={"version": version})

    assert not Message.objects.exists()


@pytest.mark.parametrize("publish", PUBLISHING)
@pytest.mark.parametrize("name", ["stream_version", "outbox.erased"])
def test_headers_that_the_outbox_writes_cannot_be_given(publish, name):
    """Nobody claims a version of a stream, or that a message was erased; a forwarded header says so."""
    with pytest.raises(InvalidHeaders, match=f'"{name}" is the outbox\'s own: use another name'):
        publish(headers={name: 1, "user": "ann"})
    with pytest.raises(InvalidContext, match=f"cannot carry {name!r}"):
        outbox.context(**{name: 1})

    assert not Message.objects.exists()


def test_one_bad_event_keeps_the_whole_batch_out():
    """The error tells the index of the event; nothing of the batch is stored, and the transaction
    goes on."""

    class Bad(outbox.Event, channel="orders"):
        value: Any

    good = [EVENT] * 700
    with pytest.raises(UnencodableValue) as caught:
        outbox.publish_many([*good, Bad(value=[1, {"at": object()}]), *good])
    outbox.publish(EVENT)

    assert caught.value.path == "batch[700].payload.value[1]['at']"
    assert Message.objects.count() == 1


@pytest.mark.parametrize("batch", [EVENT, None, 5])
def test_a_batch_is_iterable(batch):
    """A single event is not a batch."""
    with pytest.raises(TypeError, match="give a list of events"):
        outbox.publish_many(batch)


@pytest.mark.parametrize("publish", PUBLISHING)
def test_an_unknown_alias_is_refused(publish):
    """`using` is an alias of DATABASES."""
    with pytest.raises(ConnectionDoesNotExist, match="nowhere"):
        publish(using="nowhere")


def test_a_broken_transaction_takes_no_message():
    """After a database error that was swallowed, Django refuses the statement, and nothing is
    stored."""
    with pytest.raises(TransactionManagementError), transaction.atomic():
        with pytest.raises(DatabaseError), transaction.atomic(savepoint=False):
            Message.objects.raw("SELECT 1/0").iterator().__next__()
        outbox.publish(EVENT)

    assert not Message.objects.exists()
