"""JSON that PostgreSQL keeps as it is, or an error that names the place."""

import decimal
import enum
import uuid

import msgspec
import pytest

import outbox
from outbox.encoding import encode, key_text
from outbox.exceptions import InvalidKey, UnencodableValue
from outbox.models import Message


class Kind(enum.Enum):
    SMALL = "small"


ID = uuid.UUID(int=5)
EQUAL_KEYS = [
    {1: "a", "1": "b"},
    {1.5: "a", "1.5": "b"},
    {decimal.Decimal("2"): "a", 2: "b"} | {"2": "c"},
    {Kind.SMALL: 1, "small": 2},
    {ID: 1, str(ID): 2},
    {"rows": [{"deep": {7: 1, "7": 2}}]},
    msgspec.Raw(b'{"a": 1, "a" : 2}'),
    {"image": msgspec.Raw(b'{"b":{"a":1,"a":2}}')},
]
UNREADABLE = [
    msgspec.Raw(b'{"a":1e400}'),
    msgspec.Raw(b"-1e400"),
    msgspec.Raw(b'{"a" :NaN}'),
    msgspec.Raw(b'{"a" :'),
    {"n": 10**5000},
    10**5000,
]


@pytest.mark.parametrize("payload", EQUAL_KEYS)
def test_equal_keys_in_one_object_are_refused(payload):
    """jsonb keeps one of them: the other value would vanish in silence."""
    with pytest.raises(UnencodableValue) as refused:
        encode(payload, "payload")

    assert "payload" in refused.value.path


@pytest.mark.parametrize("payload", UNREADABLE, ids=lambda payload: type(payload).__name__)
def test_a_number_that_cannot_be_read_back_is_refused(payload):
    """Also one that JSON text or jsonb could hold."""
    with pytest.raises(UnencodableValue):
        encode(payload, "payload")


@pytest.mark.parametrize("key", [10**5000, -(10**5000)], ids=["positive", "negative"])
def test_an_integer_of_thousands_of_digits_is_no_key(key):
    """Python does not write it as text."""
    with pytest.raises(InvalidKey):
        key_text(key)


WHOLE = [0, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, -(2**64), 10**30, 10**400]


@pytest.mark.django_db
@pytest.mark.usefixtures("in_atomic")
@pytest.mark.parametrize("number", WHOLE, ids=lambda number: f"{len(str(number))} digits")
def test_integers_beyond_64_bits_are_stored_and_read_as_they_are(number):
    """In a plain payload, and in an event's field."""
    outbox.publish_raw("numbers", "Counted", {"n": number, str(number): [number]})
    stored = Message.objects.get().payload

    assert stored == {"n": number, str(number): [number]}


FINE = [
    {1: "a", "2": "b"},
    {"a": {"x": 1}, "b": {"x": 1}},
    msgspec.Raw(b'{"a" : 1, "b" : {"a": 2}}'),
    {"t": '":":":'},
]


@pytest.mark.parametrize("payload", FINE)
def test_keys_that_differ_are_kept(payload):
    """Equal keys in different objects, quotes in texts and white space in raw JSON are no reason to refuse."""
    text = encode(payload, "payload")

    assert msgspec.json.decode(text) is not None
