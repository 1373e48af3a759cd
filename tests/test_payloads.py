"""What publish accepts, the event class can decode."""

from __future__ import annotations

from decimal import Decimal
from ipaddress import IPv4Address
from pathlib import Path

import msgspec
import pytest
from django.core import checks

import outbox
from outbox import events
from outbox.exceptions import InvalidEvent, InvalidField
from outbox.models import Message
from tests.shop.models import Order

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("in_atomic")]


class Line(msgspec.Struct):
    price: Decimal


class Bought(outbox.Event, channel="bought", key="order_id"):
    order_id: int
    total: Decimal = Decimal(1)
    lines: list[Line] = []
    by_name: dict[str, int] = {}


@pytest.mark.parametrize(
    ("event", "field", "value"),
    [
        (Bought(order_id="17"), "order_id", "17"),
        (Bought(order_id=1, lines=[Line(price=True)]), "lines[0].price", True),
        (Bought(order_id=1, total=None), "total", None),
        (
            Bought(order_id=1, lines=[Line(price=Decimal(1)), Line(price="x")]),
            "lines[1].price",
            "x",
        ),
        (Bought(order_id=1, lines=None), "lines", None),
        (Bought(order_id=1, by_name={"a": "b"}), "by_name[...]", {"a": "b"}),
    ],
)
@pytest.mark.parametrize("publish", [outbox.publish, lambda event: outbox.publish_many([event])])
def test_a_value_of_the_wrong_type_is_refused(event, field, value, publish):
    """The error names the class, the field, the value and the way out; nothing is stored."""
    with pytest.raises(InvalidField) as caught:
        publish(event)

    assert (caught.value.event, caught.value.field, caught.value.value) == ("Bought", field, value)
    assert f"Bought.{field} holds {value!r}" in str(caught.value)
    assert "Publish a value of the declared type, or change the field's annotation" in str(
        caught.value
    )
    assert not Message.objects.exists()


class Sold(outbox.Event, channel="bought"):
    order_id: int


@pytest.mark.parametrize("first", [Bought(order_id=1), Sold(order_id=1)])
def test_the_event_of_a_batch_is_named(first):
    """The error's note says which one it is, in a batch of one class and of several."""
    with pytest.raises(InvalidField) as caught:
        outbox.publish_many([first, Bought(order_id="2")])

    assert caught.value.__notes__ == ["It is about batch[1]."]
    assert isinstance(caught.value, InvalidEvent)


def test_a_raw_payload_is_not_compared_with_a_class():
    """publish_raw() carries what this process does not know, such as a newer shape of a type."""
    outbox.publish_raw("bought", "Bought", {"order_id": "17"})

    assert Message.objects.get().payload == {"order_id": "17"}


@pytest.mark.parametrize("kind", [Path, IPv4Address, Order, list[Path], dict[str, Order]])
def test_a_field_that_nothing_can_be_decoded_into_is_an_error(kind, monkeypatch):
    """E010 names the event, the field and its type: msgspec takes any class, and decodes few."""
    monkeypatch.setattr(events, "_registry", {})
    type(outbox.Event)(
        "Odd",
        (outbox.Event,),
        {"__annotations__": {"number": int, "thing": kind}, "__module__": __name__},
        channel="odd",
    )
    found = [each for each in checks.run_checks(tags=["outbox"]) if each.id == "outbox.E010"]

    assert len(found) == 1
    assert "Odd.thing is of type" in found[0].msg
