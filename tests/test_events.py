"""Events: what is published is what the handler gets, or is refused by name."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import uuid
from typing import Any, Literal

import msgspec
import pytest
from django.db import transaction
from django.utils.functional import lazystr
from django.utils.safestring import mark_safe
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import outbox
from outbox import events
from outbox.encoding import encode, is_storable, key_text
from outbox.exceptions import (
    DuplicateEventType,
    InvalidChannel,
    InvalidEvent,
    InvalidKey,
    InvalidTypeName,
    NulCharacter,
    UndecodableMessage,
    UnencodableValue,
)
from outbox.messages import decode, draft_of
from outbox.models import Message

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("in_atomic")]


class Color(enum.Enum):
    RED = "red"
    DEEP_BLUE = "deep blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Line(msgspec.Struct):
    sku: str
    price: decimal.Decimal
    parts: list[Line] = []


@dataclasses.dataclass
class Address:
    street: str


class Everything(outbox.Event, channel="events-everything", key="whole"):
    whole: int
    ratio: float
    total: decimal.Decimal
    text: str
    moment: datetime.datetime
    day: datetime.date
    time: datetime.time
    duration: datetime.timedelta
    uid: uuid.UUID
    raw: bytes
    flag: bool
    color: Color
    level: Level
    line: Line
    address: Address
    lines: list[Line]
    prices: dict[str, decimal.Decimal]
    names: dict[int, str]
    pair: tuple[int, str]
    tags: frozenset[str]
    either: int | str
    anything: Any
    note: str | None = None
    state: Literal["new", "paid"] = "new"


class Versioned(Everything, channel="events-everything", type="everything.2", version=2):
    """The same by the other way: a version in the headers."""


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
NUMBERS = st.integers(-(10**40), 10**40)
ZONES = st.builds(
    datetime.timezone,
    st.timedeltas(datetime.timedelta(hours=-14), datetime.timedelta(hours=14)).map(
        lambda offset: datetime.timedelta(minutes=offset // datetime.timedelta(minutes=1))
    ),
)
DECIMALS = st.decimals(allow_nan=False)
LINES = st.recursive(
    st.builds(Line, TEXT, DECIMALS, st.just([])),
    lambda lines: st.builds(Line, TEXT, DECIMALS, st.lists(lines, max_size=2)),
    max_leaves=4,
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats(-1e15, 1e15) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
FIELDS = {
    "whole": NUMBERS,
    "ratio": st.floats(allow_nan=False, allow_infinity=False),
    "total": DECIMALS,
    "text": TEXT,
    "moment": st.datetimes(timezones=ZONES),
    "day": st.dates(),
    "time": st.times(),
    "duration": st.timedeltas(),
    "uid": st.uuids(),
    "raw": st.binary(),
    "flag": st.booleans(),
    "color": st.sampled_from(Color),
    "level": st.sampled_from(Level),
    "line": LINES,
    "address": st.builds(Address, TEXT),
    "lines": st.lists(LINES, max_size=3),
    "prices": st.dictionaries(TEXT, DECIMALS, max_size=3),
    "names": st.dictionaries(NUMBERS, TEXT, max_size=3),
    "pair": st.tuples(NUMBERS, TEXT),
    "tags": st.frozensets(TEXT, max_size=3),
    "either": NUMBERS | TEXT,
    "anything": JSON,
    "note": st.none() | TEXT,
    "state": st.sampled_from(["new", "paid"]),
}


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    batch=st.lists(
        st.builds(Everything, **FIELDS) | st.builds(Versioned, **FIELDS), min_size=1, max_size=3
    ),
    headers=st.dictionaries(TEXT.filter(lambda name: name != "version"), JSON, max_size=2),
)
def test_the_handler_gets_what_was_published(witness, batch, headers):
    """Every common type of field comes back equal, whatever its value, one by one and in batches."""
    seen = witness("events-property", "events-everything").of(Everything, Versioned)
    seen.drain()
    outbox.publish(batch[0], headers=headers)
    outbox.publish_many(batch, headers=headers)

    assert seen.drain() == [batch[0], *batch]
    assert [message.key for message in seen.messages] == [
        str(each.whole) if type(each) is Everything else None for each in [batch[0], *batch]
    ]
    for message in seen.messages:
        assert {k: v for k, v in message.headers.items() if k != "version"} == headers


class Text(str):
    pass


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (mark_safe("<b>"), "<b>"),
        (lazystr("later"), "later"),
        (Text("text"), "text"),
        (Level.HIGH, 2),
        ((1, 2), [1, 2]),
        ({1: "a"}, {"1": "a"}),
        (2**64, 2**64),
        (-(10**300), -(10**300)),
        ("\\u0000", "\\u0000"),
        ("null", "null"),
        (None, None),
        ([None, 1.5], [None, 1.5]),
        ("\U0001f680\u202e\ufeff\ufffe", "\U0001f680\u202e\ufeff\ufffe"),
    ],
)
def test_a_raw_payload_arrives_as_plain_json(witness, value, plain):
    """Django's own kinds of text, enums and tuples arrive as the JSON value that they look like."""
    seen = witness("events-raw", "events-raw").of("Raw")
    outbox.publish_raw("events-raw", "Raw", {"value": value})

    assert seen.drain() == [{"value": plain}]


class Loose(outbox.Event, channel="events-loose", key="key"):
    value: Any = None
    key: Any = None


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), "Loose.value"),
        ([1, {"a": [object()]}], "Loose.value[1]['a'][0]"),
        ({"{x}": object()}, "Loose.value['{x}']"),
        (Line("a", object()), "Loose.value.price"),
        (Address(object()), "Loose.value.street"),
        ({(1, 2): 3}, "a key of Loose.value"),
        ({None: 3}, "a key of Loose.value"),
        ([{"a": {True: 3}}], "a key of Loose.value[0]['a']"),
        (LOOP, "Loose"),
        pytest.param(10**5000, "Loose.value", id="more digits than Python writes"),
        ("\ud800", "Loose.value"),
        ({"a": ["x\udfffy"]}, "Loose.value['a'][0]"),
        ({"\ud800": 1}, "a key of Loose.value"),
        (float("nan"), "Loose.value"),
        ({"a": [None, float("inf")]}, "Loose.value['a'][1]"),
        ([Line("a", float("-inf"))], "Loose.value[0].price"),
        ([2**70, None, float("nan")], "Loose.value[2]"),
    ],
)
def test_a_value_that_json_cannot_carry_is_named_by_its_path(value, path):
    """Refused with the path, the value and its type; nothing is stored and nothing becomes null."""
    with pytest.raises(UnencodableValue) as caught:
        outbox.publish(Loose(value=value))
    with pytest.raises(UnencodableValue) as of_batch:
        outbox.publish_many([Loose(), Loose(value=value)])

    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path} holds ")
    assert f"({caught.value.kind}), which JSON cannot carry: convert it" in str(caught.value)
    assert len(str(caught.value)) < 400
    if value is not LOOP:
        assert of_batch.value.path == path.replace("Loose", "batch[1].payload")
    assert not Message.objects.exists()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("a\0b", "Loose.value"),
        (["\\u0000", {"a": "\0"}], "Loose.value[1]['a']"),
        ({"\0": 1}, "a key of Loose.value"),
        (Address("\0"), "Loose.value.street"),
        (enum.Enum("Bad", {"X": "\0"}).X, "Loose['value']"),
    ],
)
def test_a_nul_character_is_named_by_its_path(value, path):
    """PostgreSQL cannot store NUL: refused with the place, in payloads and in a batch."""
    with pytest.raises(NulCharacter) as caught:
        outbox.publish(Loose(value=value))
    with pytest.raises(NulCharacter, match=r"^batch\[1\]|^a key of batch\[1\]|^batch\[1\]\["):
        outbox.publish_many([Loose(), Loose(value=value)])

    assert caught.value.path == path
    assert "remove it before publishing" in str(caught.value)
    assert not Message.objects.exists()


@pytest.mark.parametrize("headers", [{"a": ["\0"]}, {"\0": 1}])
def test_headers_are_checked_like_payloads(headers):
    """NUL and values that JSON cannot carry are refused in headers, too, also in those of a batch."""
    with pytest.raises(NulCharacter, match="headers"):
        outbox.publish(Loose(), headers=headers)
    with pytest.raises(UnencodableValue, match=r"^headers\['at'\] holds <object"):
        outbox.publish(Loose(), headers={"at": object()})
    with pytest.raises(UnencodableValue, match=r"^headers\['at'\] holds nan \(float\)"):
        outbox.publish(Loose(), headers={"at": float("nan")})
    with pytest.raises(UnencodableValue, match=r"^batch\[0\]\.headers\['at'\] holds <object"):
        outbox.publish_many([Loose()], headers={"at": object()})

    assert not Message.objects.exists()


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (None, None),
        ("a", "a"),
        ("", ""),
        (17, "17"),
        (2**70, str(2**70)),
        (decimal.Decimal("1.50"), "1.50"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (Color.RED, "red"),
        (Level.HIGH, "2"),
        (mark_safe("a"), "a"),
    ],
)
def test_a_key_is_text_or_a_number(key, text):
    """Text, numbers and UUIDs are stored as text; of an enum's member its value counts."""
    assert key_text(key) == text
    assert draft_of(Loose(key=key), None).key == text


@pytest.mark.parametrize(
    "key",
    [
        *(True, [1], (1, 2), {"a": 1}, object(), b"a", datetime.date(2026, 1, 1), type),
        *(float("nan"), float("inf"), decimal.Decimal("NaN"), decimal.Decimal("Infinity")),
    ],
)
def test_another_key_is_refused(key):
    """Neither text nor a number: the message names the value and its type; nothing is stored."""
    with pytest.raises(InvalidKey) as caught:
        outbox.publish(Loose(key=key))
    with pytest.raises(InvalidKey) as of_batch:
        outbox.publish_many([Loose(), Loose(key=key)])
    with pytest.raises(InvalidKey):
        outbox.publish_raw("events-loose", "Raw", 1, key=key)

    assert f"{key!r} ({type(key).__name__}) cannot be a message key: use text" in str(caught.value)
    assert of_batch.value.__notes__ == ["It is about batch[1]."]
    assert not Message.objects.exists()


@pytest.mark.parametrize(("key", "error"), [("a\0", NulCharacter), ("\ud800", UnencodableValue)])
def test_a_key_that_cannot_be_stored_is_refused(key, error):
    """NUL and lone surrogates in a key are refused before PostgreSQL sees them."""
    with pytest.raises(error, match="the key"):
        outbox.publish(Loose(key=key))
    with pytest.raises(error, match="the key"):
        outbox.publish_many([Loose(key=key)])

    assert not is_storable(key)


class Seat(outbox.Event, channel="events-seats", key=("row", "letter")):
    row: int | None
    letter: str


class Booking(outbox.Event, channel="events-seats", key=lambda booking: booking.name[:1]):
    name: str


def test_a_key_of_several_fields_is_unambiguous():
    """Fields are joined by ":"; one inside a value is escaped, so that no two keys fall together."""
    assert draft_of(Seat(12, "c"), None).key == "12:c"
    assert draft_of(Seat(1, "2:c"), None).key == r"1:2\:c"
    assert draft_of(Booking("Ann"), None).key == "A"


def test_none_within_a_key_of_several_fields_is_refused():
    """None stands for "no key" only alone."""
    with pytest.raises(
        InvalidKey, match=r"\(None, 'c'\) \(a key of several fields, one of them None"
    ):
        outbox.publish(Seat(None, "c"))


@pytest.mark.parametrize("key", ["nothing", ("a", "nothing"), (), 5, {"a"}])
def test_a_key_declared_wrongly_is_refused_at_once(key):
    """The class statement fails when `key=` names no field."""
    with pytest.raises(InvalidKey, match=r"^key=.*Wrong"):

        class Wrong(outbox.Event, channel="events-wrong", key=key):
            a: int = 0


@pytest.mark.parametrize("version", [0, -1, "2", 1.5, True, None])
def test_a_version_declared_wrongly_is_refused_at_once(version):
    """The class statement fails when `version=` is no whole number from 1 on."""
    with pytest.raises(InvalidEvent, match=r"^Wrong: version=.*: use a whole number from 1 on\.$"):

        class Wrong(outbox.Event, channel="events-wrong", version=version):
            pass


@pytest.mark.parametrize("channel", ["", "x" * 64, 5, "a\0", "\ud800"])
def test_a_channel_declared_wrongly_is_refused_at_once(channel):
    """A channel is text of 1 to 63 characters; the error names the class."""
    with pytest.raises(
        InvalidChannel, match=r"^Wrong: .* use text of 1 to 63 characters without NUL"
    ):

        class Wrong(outbox.Event, channel=channel):
            pass


def test_a_misspelt_option_of_a_class_is_refused_with_the_nearest():
    """The error names the class and what its statement takes; options of msgspec go through."""
    with pytest.raises(InvalidEvent) as caught:

        class Wrong(outbox.Event, chanel="events-wrong"):
            pass

    class Right(outbox.Event, kw_only=True):
        first: int = 1
        second: int

    assert str(caught.value) == (
        "Wrong: the class statement of an event has no chanel=. Did you mean 'channel'? It takes "
        "channel, key, type, version, stream, was, and what a msgspec.Struct takes."
    )
    assert Right(second=2).first == 1


@pytest.mark.parametrize("type", ["", "a\0", 5, "\ud800"])
def test_a_type_name_declared_wrongly_is_refused_at_once(type):
    """A type name is text that PostgreSQL can store; the error names the class."""
    with pytest.raises(
        InvalidTypeName, match=r"^Wrong: .* is not the name of a message type: use text"
    ):

        class Wrong(outbox.Event, channel="events-wrong", type=type):
            pass


def test_two_classes_with_one_type_name_are_refused():
    """In one channel a type name belongs to one class: the second class statement names both."""

    class First(outbox.Event, channel="events-twice", type="order"):
        pass

    with pytest.raises(DuplicateEventType) as caught:

        class Second(outbox.Event, channel="events-twice", type="order"):
            pass

    assert "Channel 'events-twice' already has an event type 'order', declared by" in str(
        caught.value
    )
    assert "First" in caught.value.first
    assert "Second" in caught.value.second
    assert 'give it type="…"' in str(caught.value)


def test_one_type_name_in_two_channels_is_fine():
    """The name on the wire counts within its channel only."""

    class First(outbox.Event, channel="events-here", type="order"):
        pass

    class Second(outbox.Event, channel="events-there", type="order"):
        pass

    assert events.event_type("events-here", "order") is First
    assert events.event_type("events-there", "order") is Second


class Base(outbox.Event):
    order_id: int


class Derived(Base, channel="events-derived", key="order_id", type="order.derived"):
    note: str = ""


class Further(Derived):
    pass


def test_an_event_class_can_have_a_base():
    """Fields are inherited, the channel is not: a class has the one of its own statement."""
    draft = draft_of(Derived(order_id=1, note="x"), None)

    assert (draft.channel, draft.type, draft.key) == ("events-derived", "order.derived", "1")
    assert encode(draft.payload, "it") == '{"order_id":1,"note":"x"}'
    assert events.sources(Further) == []


@pytest.mark.parametrize("what", [Base(order_id=1), Further(order_id=1), Derived, "text", None, {}])
def test_what_is_no_event_with_a_channel_is_refused(what):
    """Instances of a base class, classes and other objects are refused by name."""
    with pytest.raises(InvalidEvent, match="is not an event with a channel: publish an instance"):
        outbox.publish(what)
    with pytest.raises(InvalidEvent) as of_batch:
        outbox.publish_many([Derived(order_id=1), what])

    assert of_batch.value.__notes__ == ["It is about batch[1]."]
    assert not Message.objects.exists()


class Node(outbox.Event, channel="events-nodes"):
    leaves: list[Leaf]
    children: list[Node] = []


class Leaf(msgspec.Struct):
    name: str


def test_an_event_may_name_itself_and_what_comes_later(witness):
    """Annotations are looked up when the first payload is decoded, not in the class statement."""
    seen = witness("events-nodes", "events-nodes").of(Node)
    node = Node(leaves=[Leaf("a")], children=[Node(leaves=[])])
    outbox.publish(node)

    assert seen.drain() == [node]


class Words(outbox.Event, channel="events-words", key="key"):
    channel: str
    key: str
    type: str
    version: int
    headers: dict[str, int]
    contract: str


def test_a_field_may_have_any_name(witness):
    """The words of the class statement are free for fields."""
    seen = witness("events-words", "events-words").of(Words)
    event = Words(channel="a", key="b", type="c", version=5, headers={"version": 1}, contract="e")
    outbox.publish(event)

    assert seen.drain() == [event]
    assert seen.messages[0].key == "b"


class Paid(outbox.Event, channel="events-paid", version=3):
    cents: int
    by: dict[int, str]

    @classmethod
    def upgrade(cls, payload, version):
        if version < 2:
            payload = {**payload, "cents": payload.pop("euros") * 100}
        if version < 3:
            payload = {**payload, "by": {7: "unknown"}}
        return payload


@pytest.mark.parametrize(
    ("payload", "headers", "event"),
    [
        ({"euros": 3}, None, Paid(300, {7: "unknown"})),
        ({"euros": 3}, {"version": 1}, Paid(300, {7: "unknown"})),
        ({"cents": 5}, {"version": 2}, Paid(5, {7: "unknown"})),
        ({"cents": 5, "by": {"1": "a"}}, {"version": 3, "x": 1}, Paid(5, {1: "a"})),
    ],
)
def test_an_older_version_is_upgraded(witness, payload, headers, event):
    """`upgrade` gets the payload and its version; a message without one has version 1."""
    seen = witness("events-paid", "events-paid").of(Paid)
    outbox.publish_raw("events-paid", "Paid", payload, headers=headers)

    assert seen.drain() == [event]


def test_an_event_carries_its_version():
    """The version of the class travels as a header, beside the caller's own; version 1 is left out."""
    outbox.publish(Paid(5, {}), headers={"actor": "ann"})
    outbox.publish_many([Paid(6, {}), Loose()])

    assert [each.headers for each in Message.objects.order_by("position")] == [
        {"actor": "ann", "version": 3},
        {"version": 3},
        {},
    ]


def stored(event_type, payload, headers="{}"):
    """A message as it comes out of the log."""
    channel, type_name = events.sources(event_type)[0]
    return outbox.Message(7, channel, None, type_name, 1, False, "group", payload, headers, "")


@pytest.mark.parametrize(
    ("event_type", "payload", "headers", "reason"),
    [
        (Paid, "{}", '{"version": 4}', "version 4 is newer than the known version 3"),
        (Loose, "{}", '{"version": 2}', "version 2 is newer than the known version 1"),
        (Paid, "{}", '{"version": "4"}', "the header version is '4', no whole number from 1 on"),
        (Paid, "{}", '{"version": 1}', "'euros'"),
        (Paid, '{"cents": 1}', '{"version": 3}', "Object missing required field `by`"),
        (Derived, '{"order_id": "x"}', "{}", "Expected `int`, got `str` - at `$.order_id`"),
        (Derived, "{}", "{}", "Object missing required field `order_id`"),
        (Derived, "[]", "{}", "Expected `object`, got `array`"),
        (Seat, '{"row": 1, "letter": null}', "{}", "Expected `str`, got `null` - at `$.letter`"),
    ],
)
def test_a_payload_that_does_not_fit_is_named(event_type, payload, headers, reason):
    """The error names position, type, channel and class, the field, and the way out."""
    with pytest.raises(UndecodableMessage) as caught:
        decode(stored(event_type, payload, headers), event_type)

    channel, type_name = events.sources(event_type)[0]
    assert caught.value.position == 7
    assert caught.value.reason == reason
    assert str(caught.value) == (
        f"Message 7 of type {type_name!r} in channel {channel!r} no longer fits "
        f"{event_type.__qualname__}: {reason}. Give new fields a default, or declare version= and "
        "upgrade()."
    )


def test_a_nested_version_is_no_version():
    """Only the header of that name counts, not the word elsewhere in the headers."""
    message = stored(Derived, '{"order_id": 1}', '{"trace": {"version": 9}, "x": "version"}')

    assert decode(message, Derived) == Derived(order_id=1)


def test_a_message_has_times_and_a_stable_idempotency_key(witness):
    """`created_at` is aware and the idempotency key names group and position."""
    seen = witness("events-times", "events-loose").of(Loose)
    before = datetime.datetime.now(datetime.UTC)
    with transaction.atomic():
        position = outbox.publish(Loose(value=[None]), headers={"a": 1})
    seen.drain()
    (message,) = seen.messages

    assert abs(message.created_at - before) < datetime.timedelta(minutes=1)
    assert message.idempotency_key == f"events-times:{position}"
    assert (message.payload, message.headers) == ({"value": [None], "key": None}, {"a": 1})
