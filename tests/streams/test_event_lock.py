"""The gate for event classes: a change is refused if and only if stored payloads may not decode."""

from __future__ import annotations

import datetime
import re
import uuid
from datetime import UTC
from decimal import Decimal
from typing import Literal

import msgspec
import pytest
from django.core.management import CommandError, call_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import outbox
import outbox.testing
from outbox import events
from outbox.exceptions import InvalidLockFile
from outbox.messages import Message, decode
from outbox.streams import event_lock


@pytest.fixture
def registry(monkeypatch):
    """An empty registry of event classes."""
    monkeypatch.setattr(events, "_registry", {})
    return events._registry


def declare(fields, **options):
    """Declare the class `Made` of channel `goods` anew."""
    events._registry.clear()
    annotations = {name: kind for name, (kind, *_) in fields.items()}
    namespace = {"__annotations__": annotations, "__module__": __name__}
    namespace |= {name: rest[0] for name, (_, *rest) in fields.items() if rest}
    options = {"channel": "goods", "key": "id", "type": "Made", "kw_only": True, **options}
    return type(outbox.Event)("Made", (outbox.Event,), namespace, **options)


BASE = {"id": (int,), "note": (str, ""), "price": (Decimal,)}


def problems_after(fields, **options):
    """Lock the base class, declare another one, and return what the gate says."""
    declare(BASE)
    lock = event_lock.current()
    declare(fields, **options)
    return event_lock.check(lock)


ALLOWED = {
    "nothing": {},
    "a new field with a default": {"added": (int, 0)},
    "a wider type": {"id": (float,)},
    "an optional type": {"price": (Decimal | None,)},
    "a default for a field": {"price": (Decimal, Decimal(0))},
}
REFUSED = {
    "a field that is gone": ({"note": None}, "note is gone"),
    "a narrower type": ({"price": (int,)}, "price was decimal"),
    "a new field without a default": ({"added": (int,)}, "added has no default"),
    "a union that lost a member": ({"note": (int, 0)}, "note was string"),
}


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED.keys())
def test_a_change_that_reads_what_is_stored_passes(registry, change):
    """The gate has nothing to say."""
    assert problems_after({**BASE, **change}) == []


@pytest.mark.parametrize(("change", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_a_change_that_may_not_read_what_is_stored_is_refused(registry, change, text):
    """It names the field, and a raised version is a way out."""
    fields = {name: kind for name, kind in {**BASE, **change}.items() if kind is not None}

    (problem,) = problems_after(fields)

    assert text in problem
    assert "upgrade()" in problem
    assert problems_after(fields, version=2) == []


class Part(msgspec.Struct):
    """A type that contains itself."""

    name: str
    parts: list[Part] = []


class SparePart(msgspec.Struct, rename={"spares": "parts"}):
    """The same, with a part that has a name of another type."""

    name: int
    spares: list[SparePart] = []


def test_a_type_that_contains_itself_is_compared_once(registry):
    """The gate comes to an end, and still sees a change inside it."""
    declare({"id": (int,), "part": (Part,)})
    lock = event_lock.current()

    assert event_lock.check(lock) == []
    declare({"id": (int,), "part": (SparePart,)})
    (problem,) = event_lock.check(lock)
    assert "part.name was string and is integer" in problem


def test_a_type_that_is_gone_or_renamed_is_refused_without_its_old_name(registry):
    """`was=` names it."""
    (problem,) = problems_after(BASE, type="Built")

    assert 'was=["Made"]' in problem
    assert problems_after(BASE, type="Built", was=["Made"]) == []


def test_a_changed_key_is_refused(registry):
    """Messages of one thing would lose their order; a version does not help."""
    (problem,) = problems_after(BASE, key="note", version=2)

    assert "its key was 'id'" in problem


def test_a_version_that_goes_back_is_refused(registry):
    """Stored messages have the newer one."""
    declare(BASE, version=2)
    lock = event_lock.current()
    declare(BASE)

    (problem,) = event_lock.check(lock)

    assert "went back" in problem


KINDS = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=3),
    bool: st.booleans(),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False, places=2),
    datetime.date: st.dates(),
    int | None: st.none() | st.integers(0, 9),
    list[int]: st.lists(st.integers(0, 9), max_size=2),
    list[str]: st.lists(st.text(max_size=2), max_size=2),
    dict[str, int]: st.dictionaries(st.text(max_size=2), st.integers(0, 9), max_size=2),
    datetime.datetime: st.datetimes(),
    datetime.time: st.times(),
    datetime.timedelta: st.timedeltas(),
    Literal["a", "b"]: st.sampled_from(["a", "b"]),
}
SAMPLES = {
    int: [0, -5, 2**60, -(2**63)],
    float: [0.5, 2.0, -1e300, 1e20],
    str: ["", "x", "12", "2020-01-01"],
    bool: [True, False],
    Decimal: [Decimal("1.50"), Decimal("-3"), Decimal("1E+3")],
    bytes: [b"", b"xyz"],
    uuid.UUID: [uuid.UUID(int=5)],
    datetime.date: [datetime.date(2020, 1, 1)],
    datetime.datetime: [datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 1, tzinfo=UTC)],
    datetime.time: [datetime.time(1, 2)],
    datetime.timedelta: [datetime.timedelta(1)],
    int | None: [None, 3],
    str | None: [None, "x"],
    float | None: [None, 0.5],
    int | str: [1, "x"],
    datetime.datetime | None: [None, datetime.datetime(2020, 1, 1)],
    list[int]: [[], [1]],
    list[str]: [[], ["a"]],
    list[float]: [[], [0.5]],
    list[datetime.datetime]: [[], [datetime.datetime(2020, 1, 1)]],
    tuple[int, ...]: [(), (1,)],
    dict[str, int]: [{}, {"a": 1}],
    dict[str, float]: [{}, {"a": 1.5}],
    dict[str, datetime.date]: [{}, {"a": datetime.date(2020, 1, 1)}],
    Literal["a", "b"]: ["a", "b"],
    Literal["a", "b", "c"]: ["a", "b", "c"],
    Literal[1, 2]: [1, 2],
}
"""Payloads of each type, among them one that each incompatible type cannot read."""


def decodes(stored, event_type):
    """Whether the class reads a stored payload."""
    try:
        msgspec.json.decode(stored, type=event_type)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize("old", SAMPLES, ids=str)
def test_the_gate_passes_a_change_if_and_only_if_every_sample_decodes(registry, old):
    """For each pair of types: what was stored by the old class, read by the new one."""
    first = declare({"id": (int,), "field": (old,)})
    lock = event_lock.current()
    stored = [msgspec.json.encode(first(id=1, field=value)) for value in SAMPLES[old]]
    wrong = []
    for new in SAMPLES:
        second = declare({"id": (int,), "field": (new,)})
        passes = not event_lock.check(lock)
        if passes != all(decodes(each, second) for each in stored):
            wrong.append((new, "passes" if passes else "is refused"))

    assert wrong == []


def test_a_lock_file_that_was_edited_by_hand_is_refused(registry, tmp_path):
    """Its checksum does not fit any more; the error says how to write it anew."""
    file = tmp_path / "events.lock.json"
    declare(BASE)
    event_lock.write(file)
    file.write_text(file.read_text().replace('"integer"', '"number"'))

    with pytest.raises(InvalidLockFile, match="edited by hand"):
        event_lock.read(file)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(old=st.sampled_from(list(KINDS)), new=st.sampled_from(list(KINDS)), data=st.data())
def test_what_passes_decodes(old, new, data):
    """When the gate passes a change of a field's type, every payload of the old class decodes."""
    known = dict(events._registry)
    try:
        first = declare({"id": (int,), "field": (old,)})
        lock = event_lock.current()
        value = data.draw(KINDS[old])
        stored = msgspec.json.encode(first(id=1, field=value))
        second = declare({"id": (int,), "field": (new,)})

        if not event_lock.check(lock):
            msgspec.json.decode(stored, type=second)
    finally:
        events._registry.clear()
        events._registry.update(known)


def test_the_commands(tmp_path, capsys):
    """`lock` writes the file, `check` passes on it, `catalogue` lists, and a broken file is named."""
    file = tmp_path / "events.lock.json"

    call_command("outbox", "events", "lock", "--file", str(file))
    call_command("outbox", "events", "check", "--file", str(file))
    call_command("outbox", "events", "catalogue")

    assert "OrderPlaced" in capsys.readouterr().out
    file.write_text("{}")
    with pytest.raises(CommandError, match="no lock file"):
        call_command("outbox", "events", "check", "--file", str(file))


@pytest.mark.django_db
def test_an_event_of_version_four_reads_what_versions_one_to_three_stored(registry):
    """Each upgrade is a step of the chain; messages of all versions are read as the newest class."""
    from django.db import transaction

    declare({"id": (int,), "name": (str,)})
    versions = [
        ({"id": (int,), "name": (str,)}, {"id": 1, "name": "Ann Lee"}),
        ({"id": (int,), "first": (str,), "last": (str,)}, {"id": 1, "first": "Bo", "last": "Ek"}),
        ({"id": (int,), "full": (str,)}, {"id": 1, "full": "Cy Fox"}),
    ]

    def upgrade(cls, payload, version):
        if version < 2:
            first, _, last = payload.pop("name").partition(" ")
            payload |= {"first": first, "last": last}
        if version < 3:
            payload["full"] = f"{payload.pop('first')} {payload.pop('last')}"
        if version < 4:
            payload["initials"] = "".join(word[0] for word in payload.pop("full").split())
        return payload

    with transaction.atomic():
        for number, (fields, values) in enumerate(versions, 1):
            outbox.publish(declare(fields, version=number)(**values))
    newest = declare({"id": (int,), "initials": (str,)}, version=4)
    newest.upgrade = classmethod(upgrade)
    stored = outbox.models.Message.objects.order_by("position")

    assert [
        decode(
            Message(
                each.position,
                each.channel,
                each.key,
                each.type,
                1,
                False,
                "",
                msgspec.json.encode(each.payload).decode(),
                msgspec.json.encode(each.headers).decode(),
                "",
            ),
            newest,
        ).initials
        for each in stored
    ] == ["AL", "BE", "CF"]


def resolved(document, reference):
    """Follow a reference of the document; KeyError where it points to nothing."""
    found = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def references(part):
    """Every $ref in a part of a document."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_the_asyncapi_document_is_whole(registry, capsys):
    """It has the parts that AsyncAPI 3.0 demands, every reference points to one, names are allowed."""
    from tests.bank.models import Deposited, Opened

    declare({"id": (int,), "part": (Part,)}, channel="odd / näme", type="Made/Here", version=3)
    for each in (Opened, Deposited):
        events._register(each)
    type(outbox.Event)(
        "Other",
        (outbox.Event,),
        {"__annotations__": {"id": int}, "__module__": __name__},
        channel="odd _ n_me",
        type="Other",
    )
    with outbox.testing.isolated_groups():
        ledger = outbox.ConsumerGroup("ledger", channels=["accounts"])
        ledger.handler(Deposited)(lambda event, message: None)
        call_command("outbox", "events", "catalogue", "--asyncapi", "--title", "Bank")
    document = msgspec.json.decode(capsys.readouterr().out)

    assert document["asyncapi"] == "3.0.0"
    assert document["info"] == {"title": "Bank", "version": "1.0.0"}
    assert sorted(each["address"] for each in document["channels"].values()) == [
        "accounts",
        "odd / näme",
        "odd _ n_me",
    ]
    for kind in ("channels", "operations"):
        assert all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in document[kind])
    for kind in ("messages", "schemas"):
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in document["components"][kind])
    assert all(resolved(document, each) for each in references(document))
    ledger = document["operations"]["ledger.accounts"]
    assert ledger == {
        "action": "receive",
        "channel": {"$ref": "#/channels/accounts"},
        "messages": [{"$ref": "#/channels/accounts/messages/Deposited"}],
    }
    message = resolved(document, resolved(document, ledger["messages"][0]["$ref"])["$ref"])
    assert message["name"] == "Deposited"
    assert message["headers"]["required"] == ["stream_version"]
    payload = resolved(document, message["payload"]["$ref"])
    assert payload["required"] == ["account", "amount"]
    made = document["components"]["messages"]["odd___n_me.Made_Here"]
    assert (made["name"], made["x-outbox-version"]) == ("Made/Here", 3)
    assert {each["action"] for each in document["operations"].values()} == {"send", "receive"}


@pytest.mark.django_db(transaction=True)
def test_the_catalogue_counts_the_messages_of_each_type(registry, capsys):
    """Those of former names count as well; --counts reads the log, and without it nothing is read."""
    from django.db import transaction

    made = declare(BASE)
    with transaction.atomic():
        for number in range(3):
            outbox.publish(made(id=number, price=Decimal(1)))
    declare(BASE, type="Built", was=["Made"])
    call_command("outbox", "events", "catalogue", "--counts", "--json")

    (row,) = msgspec.json.decode(capsys.readouterr().out)

    assert (row["type"], row["messages"]) == ("Built", 3)
    assert datetime.datetime.fromisoformat(row["last_at"]).tzinfo is not None
